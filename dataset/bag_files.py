"""Read the messages of ROS bags: .mcap and .db3 (rosbag2), .bag (ROS 1), from front to back.

The readers of the package rosbags need an intact index, stop at the first damaged block, and load all blocks whose
times overlap. A robot's recording often ends where its power did, so the blocks are read here: a damaged one is skipped
and counted, and one block is in memory at a time. rosbags decodes the messages (dataset/bag_messages.py).

Formats: https://mcap.dev/spec, https://wiki.ros.org/Bags/Format/2.0, and the SQLite schema of rosbag2_storage.
"""

import bz2
import sqlite3
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote
from zlib import crc32

from cli import UserError

from backports import zstd
from lz4.frame import LZ4FrameDecompressor

BAG_SUFFIXES = (".mcap", ".db3", ".bag")
MCAP_MAGIC, ROS1_MAGIC, ZSTD_MAGIC = b"\x89MCAP0\r\n", b"#ROSBAG V2.0\n", b"\x28\xb5\x2f\xfd"
MAX_BLOCK_BYTES = 2**28  # a larger block is damage: recorders write blocks of up to some MB
MAX_LOST_ROWS = 1000  # unreadable rows of a .db3 in a row, after which the rest is given up
DECOMPRESS_ERRORS = (RuntimeError, ValueError, OSError, EOFError, zstd.ZstdError)


@dataclass(frozen=True)
class Topic:
    """A topic of a bag: its name, message type such as sensor_msgs/msg/Image, and the encoding, cdr or ros1."""

    name: str
    msgtype: str
    encoding: str


class Message(NamedTuple):
    """A message as stored: its topic, the time of recording in nanoseconds, and the encoded content."""

    topic: Topic
    time: int
    data: bytes | memoryview


@dataclass
class Damage:
    """What could not be read of a bag: where files end too early, and the number of damaged blocks."""

    cuts: list[str] = field(default_factory=list)
    blocks: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """One line for each defect."""
        return self.cuts + [f"{name}: skipped {count} damaged blocks" for name, count in self.blocks.items()]


def read_messages(path: Path, wanted: Callable[[Topic], bool], damage: Damage) -> Iterator[Message]:
    """Yield the messages of the wanted topics in the order of the file.

    Args:
        path: a .mcap, .db3 or .bag file.
        wanted: whether to yield a topic's messages.
        damage: filled with what can't be read.

    Raises UserError if the file is not of the format that its name says.
    """
    suffix = path.suffix.lower()
    if suffix == ".db3":
        yield from _read_sqlite(path, wanted, damage)
        return
    magic = MCAP_MAGIC if suffix == ".mcap" else ROS1_MAGIC
    with open(path, "rb") as file:
        if file.read(len(magic)) != magic:
            raise UserError(f"{path} is not a {suffix} bag: it is empty, damaged at its start, or another file")
        read = _read_mcap if suffix == ".mcap" else _read_ros1
        yield from read(file, path, wanted, damage)


def _read_mcap(file: BinaryIO, path: Path, wanted: Callable[[Topic], bool], damage: Damage) -> Iterator[Message]:
    schemas: dict[int, str] = {}
    topics: dict[int, Topic | None] = {}  # None: not wanted
    size = path.stat().st_size
    while True:
        start = file.tell()
        head = file.read(9)
        operation, length = struct.unpack("<BQ", head) if len(head) == 9 else (0, 0)
        if operation in (0x02, 0x0F):  # footer, end of data
            return
        is_cut = start + 9 + length > size
        if operation == 0 or is_cut and (operation != 0x06 or length > MAX_BLOCK_BYTES):
            damage.cuts.append(_cut(path, start, size))
            return
        if operation not in (0x03, 0x04, 0x05, 0x06) or length > MAX_BLOCK_BYTES:
            if length > MAX_BLOCK_BYTES:
                damage.blocks[path.name] += 1
            file.seek(length, 1)
            continue
        content = file.read(length)
        try:
            is_chunk = operation == 0x06
            for kind, record in _mcap_chunk(content, is_cut) if is_chunk else [(operation, memoryview(content))]:
                if (message := _mcap_record(kind, record, schemas, topics, wanted)) is not None:
                    yield message
        except (*DECOMPRESS_ERRORS, struct.error):
            damage.blocks[path.name] += 1
        if is_cut:
            damage.cuts.append(_cut(path, start, size))
            return


def _cut(path: Path, start: int, size: int) -> str:
    return f"{path.name}: the file ends within the record at byte {start} of {size}; what comes after it is missing"


def _mcap_chunk(content: bytes, is_cut: bool) -> Iterator[tuple[int, memoryview]]:
    """The records of a chunk, those before the cut if it is cut.

    Raises struct.error or one of DECOMPRESS_ERRORS if it is damaged.
    """
    _, _, size, checksum, name_length = struct.unpack_from("<QQQII", content)
    name = content[32 : 32 + name_length].decode()
    records = _decompress(name, memoryview(content)[40 + name_length :], size)
    if not is_cut and (len(records) != size or checksum and crc32(records) != checksum):
        raise ValueError("the chunk is not what its size and checksum say")
    return _mcap_records(memoryview(records))


def _decompress(name: str, payload: memoryview, size: int) -> bytes | memoryview:
    """Decompress a block as far as it goes, up to `size` bytes; raises one of DECOMPRESS_ERRORS."""
    if size > MAX_BLOCK_BYTES:
        raise ValueError("the block is too large")
    if name in ("", "none"):
        return payload
    if name == "lz4":
        return LZ4FrameDecompressor().decompress(payload, size)
    if name == "zstd":
        return zstd.ZstdDecompressor().decompress(payload, size)
    if name == "bz2":
        return bz2.BZ2Decompressor().decompress(payload, size)
    raise ValueError(f"unknown compression {name}")


def _mcap_records(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    position = 0
    while position + 9 <= len(content):
        operation, length = struct.unpack_from("<BQ", content, position)
        position += 9
        if position + length > len(content):
            return
        yield operation, content[position : position + length]
        position += length


def _mcap_record(
    kind: int,
    record: memoryview,
    schemas: dict[int, str],
    topics: dict[int, Topic | None],
    wanted: Callable[[Topic], bool],
) -> Message | None:
    """Note a schema or channel; return a message of a wanted topic. Raises struct.error or ValueError."""
    if kind == 0x03:
        (identifier,) = struct.unpack_from("<H", record)
        schemas[identifier], _ = _mcap_text(record, 2)
    elif kind == 0x04:
        identifier, schema = struct.unpack_from("<HH", record)
        name, position = _mcap_text(record, 4)
        encoding, _ = _mcap_text(record, position)
        topic = Topic(name, _ros2_type(schemas.get(schema, "")), encoding)
        topics[identifier] = topic if wanted(topic) else None
    elif kind == 0x05:
        identifier, _, time = struct.unpack_from("<HIQ", record)
        if (known := topics.get(identifier)) is not None:
            return Message(known, time, record[22:])
    return None


def _mcap_text(record: memoryview, position: int) -> tuple[str, int]:
    """A length-prefixed text, and the position after it."""
    (length,) = struct.unpack_from("<I", record, position)
    end = position + 4 + length
    if end > len(record):
        raise ValueError("a text ends outside its record")
    return str(record[position + 4 : end], "utf-8"), end


def _ros2_type(name: str) -> str:
    """sensor_msgs/Image, as ROS 1 names it -> sensor_msgs/msg/Image; the old tf/tfMessage -> tf2_msgs/msg/TFMessage."""
    package, _, kind = name.rpartition("/")
    package = package.removesuffix("/msg")
    return "tf2_msgs/msg/TFMessage" if (package, kind) == ("tf", "tfMessage") else f"{package}/msg/{kind}"


def _read_ros1(file: BinaryIO, path: Path, wanted: Callable[[Topic], bool], damage: Damage) -> Iterator[Message]:
    topics: dict[int, Topic | None] = {}
    size = path.stat().st_size
    while (start := file.tell()) < size:
        header = _ros1_part(file, size)
        fields = _ros1_fields(header) if header is not None else {}
        operation = fields.get("op", b"\0")[0] if fields.get("op") else 0
        length = file.read(4)
        remaining = size - file.tell()
        data_length = struct.unpack("<I", length)[0] if len(length) == 4 else 0
        is_cut = len(length) < 4 or data_length > remaining
        if operation == 0 or is_cut and operation != 5:
            damage.cuts.append(_cut(path, start, size))
            return
        if operation not in (2, 5, 7):
            file.seek(data_length, 1)
            continue
        data = file.read(data_length)
        try:
            records = [(fields, memoryview(data))] if operation != 5 else _ros1_chunk(fields, data, is_cut)
            for record_fields, record in records:
                if (message := _ros1_record(record_fields, record, topics, wanted)) is not None:
                    yield message
        except (*DECOMPRESS_ERRORS, struct.error, LookupError):
            damage.blocks[path.name] += 1
        if is_cut:
            damage.cuts.append(_cut(path, start, size))
            return


def _ros1_part(file: BinaryIO, size: int) -> bytes | None:
    """A length-prefixed part of a record; None if the file ends within it."""
    length = file.read(4)
    if len(length) < 4 or struct.unpack("<I", length)[0] > size - file.tell():
        return None
    return file.read(struct.unpack("<I", length)[0])


def _ros1_fields(header: bytes | memoryview) -> dict[str, bytes]:
    fields, position = {}, 0
    while position + 4 <= len(header):
        (length,) = struct.unpack_from("<I", header, position)
        name, _, value = bytes(header[position + 4 : position + 4 + length]).partition(b"=")
        fields[name.decode("latin-1")] = value
        position += 4 + length
    return fields


def _ros1_chunk(fields: dict[str, bytes], data: bytes, is_cut: bool) -> Iterator[tuple[dict[str, bytes], memoryview]]:
    """The records of a chunk, those before the cut if it is cut; raises one of DECOMPRESS_ERRORS if it is damaged."""
    (size,) = struct.unpack("<I", fields["size"])
    content = memoryview(_decompress(fields["compression"].decode("latin-1"), memoryview(data), size))
    if len(content) != size and not is_cut:
        raise ValueError("the chunk has another size than it says")
    position = 0
    while position + 4 <= len(content):
        (length,) = struct.unpack_from("<I", content, position)
        middle = position + 4 + length
        if middle + 4 > len(content):
            return
        (data_length,) = struct.unpack_from("<I", content, middle)
        end = middle + 4 + data_length
        if end > len(content):
            return
        yield _ros1_fields(content[position + 4 : middle]), content[middle + 4 : end]
        position = end


def _ros1_record(
    fields: dict[str, bytes], record: memoryview, topics: dict[int, Topic | None], wanted: Callable[[Topic], bool]
) -> Message | None:
    """Note a connection; return a message of a wanted topic. Raises LookupError or struct.error."""
    operation = fields["op"][0]
    if operation not in (2, 7):
        return None
    (identifier,) = struct.unpack("<I", fields["conn"])
    if operation == 7:
        content = _ros1_fields(record)
        topic = Topic(fields["topic"].decode("latin-1"), _ros2_type(content["type"].decode("latin-1")), "ros1")
        topics[identifier] = topic if wanted(topic) else None
    elif (known := topics.get(identifier)) is not None:
        seconds, nanoseconds = struct.unpack("<II", fields["time"])
        return Message(known, seconds * 10**9 + nanoseconds, record)
    return None


def _read_sqlite(path: Path, wanted: Callable[[Topic], bool], damage: Damage) -> Iterator[Message]:
    # immutable: no lock and no journal, so that read-only folders work; a write-ahead log needs the other mode
    mode = "ro" if path.with_name(path.name + "-wal").exists() else "ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode={mode}", uri=True)) as database:
            database.execute("PRAGMA writable_schema=ON")  # SQLite refuses files that are shorter than they say
            rows = database.execute("SELECT id, name, type, serialization_format FROM topics").fetchall()
            texts = [row for row in rows if all(isinstance(value, str) for value in row[1:])]
            topics = {number: Topic(name, _ros2_type(kind), encoding) for number, name, kind, encoding in texts}
            chosen = {number: topic for number, topic in topics.items() if wanted(topic)}
            yield from _sqlite_messages(database, chosen, path, damage)
    except sqlite3.Error as error:
        raise UserError(f"{path} is not a readable .db3 bag: {error}") from None


def _sqlite_messages(
    database: sqlite3.Connection, topics: dict[int, Topic], path: Path, damage: Damage
) -> Iterator[Message]:
    """Messages by their row id; rows on damaged pages are left out."""
    query = "SELECT id, topic_id, timestamp, data FROM messages WHERE id > ? ORDER BY id"
    last, lost = 0, 0
    while lost < MAX_LOST_ROWS:
        try:
            for row, topic, time, data in database.execute(query, (last,)):
                if lost:
                    damage.blocks[path.name] += lost
                last, lost = row, 0
                if topic in topics and isinstance(data, bytes):
                    if data.startswith(ZSTD_MAGIC):  # rosbag2 compressed each message
                        data = _decompress("zstd", memoryview(data), MAX_BLOCK_BYTES)
                    yield Message(topics[topic], time, data)
            return
        except DECOMPRESS_ERRORS:
            damage.blocks[path.name] += 1
        except sqlite3.DatabaseError:
            last, lost = last + 1, lost + 1
    damage.cuts.append(f"{path.name}: the file is damaged after row {last - lost}; what comes after it is missing")
