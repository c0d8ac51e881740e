"""What the cluster's jobs need from the network: four models' weights and NYU Depth V2, once, into $SCRATCH.

Reads   the Hugging Face hub (HF_ENDPOINT), ultralytics' releases, NYU's server
Writes  HF_HOME, WEIGHTS_DIR and $SCRATCH/nyu_depth_v2; beside the weights weights.lock: size and sha256 of each file,
        and whether its source publishes that sha256 ("verified") or it was only recorded when first downloaded

What is there and as the lock says is left alone; what broke off goes on where it stopped.
"""

import json
import os
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

try:
    from cli import EXIT_GATE_FAILED, EXIT_OK, ArgumentParser, UserError, run
except ModuleNotFoundError:
    print("error: this Python lacks the project itself: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from tabulate import tabulate

from config import Recipe, Runtime
from dataset.files import read_json, sha256_of, write_json
from hub import LOCK

SHA256 = re.compile(r"[0-9a-f]{64}")
YOLO_URL = "https://github.com/ultralytics/assets/releases/download/v8.4.0/yolov8x.pt"
YOLO_RELEASE = "https://api.github.com/repos/ultralytics/assets/releases/tags/v8.4.0"  # with each file's digest
NYU_URL = "http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat"


@dataclass(frozen=True)
class HubFile:
    """A file of a model on the Hugging Face hub; link: name under which WEIGHTS_DIR shows it, too."""

    what: str
    model: str
    name: str
    link: str | None = None

    @property
    def key(self) -> str:
        """Its name in the lock."""
        return f"{self.model}/{self.name}"

    def find(self, runtime: Runtime) -> Path | None:
        """The file in the hub's cache; None when it, or its link in WEIGHTS_DIR, is missing."""
        found = try_to_load_from_cache(self.model, self.name)
        linked = self.link is None or (runtime.weights_dir / self.link).is_file()
        return Path(found) if isinstance(found, str) and linked else None

    def fetch(self, runtime: Runtime) -> tuple[Path, str | None]:
        """Download; returns the file and the hub's sha256 of it, by which its cache names a large file."""
        try:
            path = Path(hf_hub_download(self.model, self.name))
        except (HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
            raise UserError(f"{self.key} can't be had from the hub: {error}") from None
        if self.link:
            runtime.weights_dir.mkdir(parents=True, exist_ok=True)
            link = runtime.weights_dir / self.link
            link.unlink(missing_ok=True)
            link.symlink_to(path)
        # one link only: what the hub's sha256 names may itself be a link to a store by another hash
        name = os.path.basename(os.readlink(path)) if path.is_symlink() else path.name
        return path, name if SHA256.fullmatch(name) else None


@dataclass(frozen=True)
class UrlFile:
    """A file at a URL; release: address of what GitHub tells of the release that it belongs to."""

    what: str
    url: str
    path: Path
    release: str | None = None

    @property
    def key(self) -> str:
        """Its name in the lock."""
        return self.path.name

    def find(self, runtime: Runtime) -> Path | None:
        """The file; None when it is missing."""
        return self.path if self.path.is_file() else None

    def fetch(self, runtime: Runtime) -> tuple[Path, str | None]:
        """Download, from where an earlier try broke off; returns the file and the sha256 that its source publishes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        flags = ["--fail", "--location", "--retry", "5", "--continue-at", "-", "--silent", "--show-error"]
        done = subprocess.run(["curl", *flags, "--output", str(part), self.url], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise UserError(f"{self.url} can't be had ({done.stderr.strip()}); run again to go on")
        published = self.published_sha256()
        if published is not None and sha256_of(part) != published:
            part.unlink()
            raise UserError(f"{self.url}: what came is not what its source publishes; it was removed, run again")
        part.replace(self.path)
        return self.path, published

    def published_sha256(self) -> str | None:
        """The sha256 that GitHub gives for the file; None without one."""
        if self.release is None:
            return None
        try:
            with urllib.request.urlopen(self.release, timeout=30) as answer:
                assets = json.load(answer)["assets"]
        except (OSError, ValueError, KeyError) as error:
            print(f"{self.release} tells no sha256: {error}")
            return None
        digests = [asset.get("digest") or "" for asset in assets if asset.get("name") == self.path.name]
        found = SHA256.search(digests[0]) if digests else None
        return found.group() if found else None


def required_files(runtime: Runtime) -> list[HubFile | UrlFile]:
    """Everything that training on NYU with learned teachers needs."""
    nyu = Path(os.environ.get("NYU_MAT") or runtime.data_root / "nyu_depth_v2/nyu_depth_v2_labeled.mat")
    return [
        HubFile("encoder", f"timm/{Recipe().encoder}", "model.safetensors"),
        HubFile("depth teacher", "depth-anything/da3metric-large", "config.json"),
        HubFile("depth teacher", "depth-anything/da3metric-large", "model.safetensors"),
        HubFile("masks", "facebook/sam2.1-hiera-large", "sam2.1_hiera_large.pt", link="sam2.1_hiera_large.pt"),
        UrlFile(
            "boxes",
            os.environ.get("YOLO_URL") or YOLO_URL,
            runtime.weights_dir / "yolov8x.pt",
            os.environ.get("YOLO_RELEASE") or YOLO_RELEASE,
        ),
        UrlFile("NYU Depth V2", os.environ.get("NYU_URL") or NYU_URL, nyu),
    ]


def file_status(file: HubFile | UrlFile, lock: dict, runtime: Runtime) -> tuple[str, list]:
    """A row of the table: what, name, MiB, sha256, state. State 'ok' needs the size that the lock has."""
    path, entry = file.find(runtime), lock.get(file.key)
    if path is None:
        return "missing", [file.what, file.key, None, None, "MISSING"]
    size = path.stat().st_size
    if entry is None:
        return "unknown", [file.what, file.key, size / 2**20, None, "not in the lock"]
    if size != entry["bytes"]:
        return "changed", [file.what, file.key, size / 2**20, None, f"CHANGED: {entry['bytes']} bytes when downloaded"]
    state = "ok" if entry["verified"] else "ok, unverified: its source publishes no sha256"
    return "ok", [file.what, file.key, size / 2**20, entry["sha256"][:12], state]


def fetch_all(files: list[HubFile | UrlFile], lock_path: Path, runtime: Runtime) -> None:
    """Download what is missing or not as the lock says; the lock is written after each file."""
    lock = read_json(lock_path) if lock_path.is_file() else {}
    for file in files:
        if file_status(file, lock, runtime)[0] == "ok":
            continue
        print(f"{file.what}: {file.key}", flush=True)
        path, published = file.fetch(runtime)
        digest = sha256_of(path)
        if published is not None and digest != published:
            raise UserError(f"{path} is not what its source publishes: remove it and run again")
        known = lock.get(file.key, {}).get("sha256")
        if published is None and known not in (None, digest):
            raise UserError(f"{path} is not what was downloaded first ({lock_path}): remove its entry if that is right")
        lock[file.key] = {"bytes": path.stat().st_size, "sha256": digest, "verified": published is not None}
        write_json(lock_path, lock)


def main() -> int:
    """Run the script; returns the exit code."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--check", action="store_true", help="print what is there; exit code 1 when something is not")
    arguments = parser.parse_args()
    runtime = Runtime()
    files, lock_path = required_files(runtime), runtime.weights_dir / LOCK
    if not arguments.check:
        fetch_all(files, lock_path, runtime)
        return EXIT_OK
    lock = read_json(lock_path) if lock_path.is_file() else {}
    states, rows = zip(*(file_status(file, lock, runtime) for file in files), strict=True)
    print(tabulate(rows, ["for", "file", "MiB", "sha256", "state"], floatfmt=".1f"))
    return EXIT_OK if set(states) == {"ok"} else EXIT_GATE_FAILED


if __name__ == "__main__":
    run(main)
