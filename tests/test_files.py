"""Reading images and text from various sources; unusual file names."""

import os
import struct
import zlib
from pathlib import Path

from cli import UserError

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from dataset import files
from dataset.files import ImageOrientationError, read_image, read_json, read_png_raw, write_npy, write_png

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
NO_UTF8 = os.fsdecode(b"caf\xe9")
TAGGED = ("jpg", "png", "webp", "tif", "tiff", "mpo")


def tagged(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    settings = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(RGB).save(path, exif=exif, **settings)
    return path


@pytest.mark.parametrize("suffix", TAGGED)
@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation_is_rejected_or_applied(tmp_path, suffix, orientation):
    path = tagged(tmp_path / f"1.{suffix}", orientation)
    with pytest.raises(
        ImageOrientationError, match=f"1.{suffix} has the EXIF tag Orientation {orientation}: .*exiftool"
    ):
        read_image(path)
    plain = read_image(tagged(tmp_path / f"plain.{suffix}", 1))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(plain).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        upright = np.array(ImageOps.exif_transpose(image))
    turned = read_image(path, apply_orientation=True)
    assert turned.shape == upright.shape == ((8, 6, 3) if orientation > 4 else (6, 8, 3))
    np.testing.assert_array_equal(turned, upright)


@pytest.mark.parametrize("suffix", TAGGED)
@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_neutral_orientations_are_accepted(tmp_path, suffix, orientation):
    path = tagged(tmp_path / f"1.{suffix}", orientation)
    assert read_image(path).shape == RGB.shape
    np.testing.assert_array_equal(read_image(path, apply_orientation=True), read_image(path))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_orientation_after_the_pixels_and_in_xmp(tmp_path):
    """PNG allows eXIf after the pixels; some editors write the orientation only as XMP."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    write_png(tmp_path / "late.png", RGB)
    content = (tmp_path / "late.png").read_bytes()
    end = content.index(b"IEND") - 4
    chunk = png_chunk(b"eXIf", exif.tobytes(8).removeprefix(b"Exif\0\0"))
    (tmp_path / "late.png").write_bytes(content[:end] + chunk + content[end:])
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(RGB).save(tmp_path / "xmp.jpg", xmp=xmp)
    for name in ("late.png", "xmp.jpg"):
        with pytest.raises(ImageOrientationError, match="Orientation 6"):
            read_image(tmp_path / name)
        assert read_image(tmp_path / name, apply_orientation=True).shape == (8, 6, 3)


def test_depth_maps_with_orientation_are_rejected(tmp_path):
    exif = Image.Exif()
    for orientation in (1, 3):
        exif[ExifTags.Base.Orientation] = orientation
        Image.fromarray(np.full((6, 8), 1234, np.uint16)).save(tmp_path / f"{orientation}.png", exif=exif)
    assert read_png_raw(tmp_path / "1.png").shape == (6, 8)
    with pytest.raises(ImageOrientationError, match="3.png has the EXIF tag Orientation 3"):
        read_png_raw(tmp_path / "3.png")


def test_corrupt_exif_is_ignored(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "1.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30)
    assert read_image(tmp_path / "1.jpg").shape == RGB.shape


@pytest.mark.parametrize("name", ["1.bmp", "1.webp", "1.tif", "1.TIFF", "1.png"])
def test_formats(tmp_path, name):
    Image.fromarray(RGB).save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    np.testing.assert_array_equal(read_image(tmp_path / name), RGB)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(UserError, match=f"{name} is not a readable image"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["1.png", "1.tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_images_are_rejected(tmp_path, name, channels):
    sixteen = np.full((6, 8, channels), 40000, np.uint16).squeeze()
    for compression in (1, 5) if name == "1.tif" else (1,):
        assert cv2.imwrite(str(tmp_path / name), sixteen, [cv2.IMWRITE_TIFF_COMPRESSION, compression])
        with pytest.raises(UserError, match="not an 8-bit RGB image"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["1.png", "1.webp", "1.tif"])
def test_multi_image_files_are_rejected(tmp_path, name):
    pages = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match="holds several images"):
        read_image(tmp_path / name)


def test_first_image_of_an_mpo_is_read(tmp_path):
    pages = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    pages[0].save(tmp_path / "1.mpo", save_all=True, append_images=pages[1:])
    path = (tmp_path / "1.mpo").rename(tmp_path / "1.jpg")
    assert (
        np.abs(read_image(path).astype(int) - RGB).mean() < 60 < np.abs(read_image(path).astype(int) - 255 + RGB).mean()
    )


@pytest.mark.parametrize(
    "path",
    [f"{NO_UTF8}.png", f"{NO_UTF8}/1.png", "a\nb.png", "'\".png", "é.png", f"{'x' * 251}.png", f"{'é' * 125}.png"],
)
def test_unusual_file_names(tmp_path, path):
    """OpenCV aborts the process on non-UTF-8 paths; temporary names must not exceed the length limit."""
    write_png(tmp_path / path, RGB)
    np.testing.assert_array_equal(read_image(tmp_path / path), RGB)
    depth = np.array([[0, 1234, 65535]], np.uint16)
    write_png(tmp_path / path, depth)
    np.testing.assert_array_equal(read_png_raw(tmp_path / path), depth)
    write_npy((tmp_path / path).with_suffix(".npy"), depth)
    assert len(list((tmp_path / path).parent.iterdir())) == 2


@pytest.mark.parametrize("image", [RGB, RGB[..., 0], RGB[..., 0].astype(np.uint16) * 255])
def test_png_bytes_equal_opencv(tmp_path, image):
    write_png(tmp_path / "1.png", image)
    cv2.imwrite(str(tmp_path / "2.png"), image[..., ::-1] if image.ndim == 3 else image)
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"])
def test_invalid_png_is_rejected(tmp_path, content):
    (tmp_path / "1.png").write_bytes(content)
    with pytest.raises(UserError, match="not a readable single-channel"):
        read_png_raw(tmp_path / "1.png")


def test_broken_links_are_reported(tmp_path):
    for name, read in (
        ("1.png", read_image),
        ("2.png", read_png_raw),
        ("3.npy", files.read_npy),
        ("4.json", read_json),
    ):
        (tmp_path / name).symlink_to("/gone/file")
        with pytest.raises(UserError, match=f"no file .*{name}: it is a link to /gone/file"):
            read(tmp_path / name)
    (tmp_path / "circle.png").symlink_to("circle.png")
    with pytest.raises(UserError, match="it is a link to circle.png"):
        read_image(tmp_path / "circle.png")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_with_and_without_byte_order_mark(tmp_path, encoding):
    (tmp_path / "1.json").write_text('{"é": 1}\r\n', encoding=encoding)
    assert read_json(tmp_path / "1.json") == {"é": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_other_encodings_are_rejected(tmp_path, encoding):
    (tmp_path / "1.json").write_text('{"é": 1}', encoding=encoding)
    words = "not UTF-8" if encoding == "latin-1" else "UTF-16"
    with pytest.raises(UserError, match=f"1.json is not readable JSON: .*{words}.*save it as UTF-8"):
        read_json(tmp_path / "1.json")


def test_is_still_image(tmp_path):
    picture, page = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    picture.save(tmp_path / "one.gif")
    picture.save(tmp_path / "many.gif", save_all=True, append_images=[page])
    picture.save(tmp_path / "photo", "JPEG")
    (tmp_path / "film.mpg").write_bytes(b"\x00\x00\x01\xb3" + bytes(200))
    (tmp_path / "text.mp4").write_text("404 not found")
    found = {path.name for path in tmp_path.iterdir() if files.is_still_image(path)}
    assert found == {"one.gif", "photo"} and not files.is_still_image(tmp_path / "none.gif")


JPEGS = {  # encoder settings that change the positions of the markers
    "baseline": {},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 2},
    "long header": {"icc_profile": bytes(200_000), "comment": b"\xff\xd9" * 50},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_with_trailing_data_is_read_and_truncated_jpeg_rejected(tmp_path, kind):
    """Phones append videos; interrupted copies may be padded with zeros, which decode to grey."""
    path, noise = tmp_path / "1.jpg", np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **JPEGS[kind])
    whole, content = read_image(path), path.read_bytes()
    path.write_bytes(content + bytes(100_000))
    assert np.array_equal(read_image(path), whole)
    path.write_bytes(content[:2] + b"\xff" * 3 + content[2:])
    assert np.array_equal(read_image(path), whole), "0xff may be repeated before a marker"
    for cut in (2, 100, 1000):
        for filled in (0, cut):
            path.write_bytes(content[:-cut] + bytes(filled))
            with pytest.raises(UserError, match="is truncated|not a readable image"):
                read_image(path)


def test_deeply_nested_json_is_rejected(tmp_path):
    (tmp_path / "camera.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not readable JSON"):
        read_json(tmp_path / "camera.json")
