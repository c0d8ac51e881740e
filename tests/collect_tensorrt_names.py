"""Writes data/tensorrt_names.json: which names that benchmark_jetson.py uses each generation of TensorRT has.

    python collect_tensorrt_names.py

Downloads the binaries of the Python packages, which can be had without TensorRT's libraries. To be run again when the
script takes another name of TensorRT; the test that reads the file says so.
"""

import inspect
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import benchmark_jetson

PACKAGES = {"8.6.1": "tensorrt-bindings", "10.3.0": "tensorrt-cu12-bindings", "11.4.0.106": "tensorrt-cu13-bindings"}
NAMES = Path(__file__).with_name("data") / "tensorrt_names.json"


def names_of_tensorrt(source: str) -> set[str]:
    """What a piece of the script takes from TensorRT: the module's members, and those of the objects that it makes."""
    chains = re.findall(r"\btrt\.((?:\w+\.)*\w+)", source)
    objects = r"\b(?:builder|network|parser|config|layer|timings|flags|self\.(?:engine|context|runtime))\.(\w+)"
    return {name for chain in chains for name in chain.split(".")} | set(re.findall(objects, source))


def weakly_typed_names() -> set[str]:
    """What is used where a network is not strongly typed: in TensorRT 8.5 and 8.6."""
    return names_of_tensorrt(inspect.getsource(benchmark_jetson.keep_types)) | {"EXPLICIT_BATCH"}


def other_names() -> set[str]:
    """What is used in every generation."""
    source = Path(benchmark_jetson.__file__).read_text()
    script = re.sub(r"add_argument|parse_args|parser\.error", "", source)  # argparse has a parser, too
    return names_of_tensorrt(script) - weakly_typed_names() - {"STRONGLY_TYPED"}


def collect(package: str, version: str) -> list[str]:
    """The used names that a generation has."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, f"{package}=={version}"]
        subprocess.run([sys.executable, "-m", "pip", "download", *flags], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            binary = b"".join(archive.read(name) for name in archive.namelist() if ".so" in name)
            init = "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith("__init__.py"))
    used = weakly_typed_names() | other_names() | {"STRONGLY_TYPED"}
    return sorted(name for name in used if name.encode() + b"\0" in binary or name in init)


if __name__ == "__main__":
    found = {version: collect(package, version) for version, package in PACKAGES.items()}
    NAMES.write_text(json.dumps(found, indent=1) + "\n")
