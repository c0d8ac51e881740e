"""Download the weights of four models and NYU Depth V2 to $SCRATCH for the cluster's jobs.

Reads   the Hugging Face hub (HF_ENDPOINT), ultralytics' releases, NYU's server
Writes  HF_HOME, WEIGHTS_DIR and $SCRATCH/nyu_depth_v2; WEIGHTS_DIR/weights.lock records each file's size and sha256,
        and whether the sha256 is published by its source ("verified") or was computed at the first download

Skips files that match the lock; resumes interrupted downloads.
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
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
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
    """A file of a model on the Hugging Face hub; link: name of a link to it in WEIGHTS_DIR."""

    what: str
    model: str
    name: str
    link: str | None = None

    @property
    def key(self) -> str:
        """Its name in the lock."""
        return f"{self.model}/{self.name}"

    def find(self, runtime: Runtime) -> Path | None:
        """The file in the hub's cache; None if it or its link in WEIGHTS_DIR is missing."""
        found = try_to_load_from_cache(self.model, self.name)
        linked = self.link is None or (runtime.weights_dir / self.link).is_file()
        return Path(found) if isinstance(found, str) and linked else None

    def fetch(self, runtime: Runtime) -> tuple[Path, str | None]:
        """Download the file; returns its path and the hub's sha256, which is the name of a large file in the cache."""
        try:
            path = Path(hf_hub_download(self.model, self.name))
        except (HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
            raise UserError(f"can't download {self.key} from the hub: {error}") from None
        if self.link:
            runtime.weights_dir.mkdir(parents=True, exist_ok=True)
            link = runtime.weights_dir / self.link
            link.unlink(missing_ok=True)
            link.symlink_to(path)
        # resolve one link only: the file named by sha256 may itself be a link into a store with other hashes
        name = os.path.basename(os.readlink(path)) if path.is_symlink() else path.name
        return path, name if SHA256.fullmatch(name) else None


@dataclass(frozen=True)
class UrlFile:
    """A file at a URL; release: URL of the GitHub release's metadata, which contains the file's digest."""

    what: str
    url: str
    path: Path
    release: str | None = None

    @property
    def key(self) -> str:
        """Its name in the lock."""
        return self.path.name

    def find(self, runtime: Runtime) -> Path | None:
        """The file; None if it is missing."""
        return self.path if self.path.is_file() else None

    def fetch(self, runtime: Runtime) -> tuple[Path, str | None]:
        """Download the file, resuming an earlier try; returns its path and the sha256 published by its source."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        flags = ["--fail", "--location", "--retry", "5", "--continue-at", "-", "--silent", "--show-error"]
        done = subprocess.run(["curl", *flags, "--output", str(part), self.url], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise UserError(f"can't download {self.url} ({done.stderr.strip()}); run again to resume")
        published = self.published_sha256()
        if published is not None and sha256_of(part) != published:
            part.unlink()
            raise UserError(f"{self.url}: the sha256 differs from the published one; the file was removed, run again")
        part.replace(self.path)
        return self.path, published

    def published_sha256(self) -> str | None:
        """The sha256 published on GitHub; None if there is none."""
        if self.release is None:
            return None
        try:
            with urllib.request.urlopen(self.release, timeout=30) as response:
                assets = json.load(response)["assets"]
        except (OSError, ValueError, KeyError) as error:
            print(f"no sha256 from {self.release}: {error}")
            return None
        digests = [asset.get("digest") or "" for asset in assets if asset.get("name") == self.path.name]
        found = SHA256.search(digests[0]) if digests else None
        return found.group() if found else None


def required_files(runtime: Runtime) -> list[HubFile | UrlFile]:
    """All files needed to train on NYU with learned teachers."""
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
    """Return (status, table row: what, name, MiB, sha256, state); status "ok" means that the size matches the lock."""
    path, entry = file.find(runtime), lock.get(file.key)
    if path is None:
        return "missing", [file.what, file.key, None, None, "MISSING"]
    size = path.stat().st_size
    if entry is None:
        return "unknown", [file.what, file.key, size / 2**20, None, "not in the lock"]
    if size != entry["bytes"]:
        return "changed", [
            file.what,
            file.key,
            size / 2**20,
            None,
            f"CHANGED: had {entry['bytes']} bytes when downloaded",
        ]
    state = "ok" if entry["verified"] else "ok, unverified: the source publishes no sha256"
    return "ok", [file.what, file.key, size / 2**20, entry["sha256"][:12], state]


def fetch_all(files: list[HubFile | UrlFile], lock_path: Path, runtime: Runtime) -> None:
    """Download files that are missing or differ from the lock; updates the lock after each file."""
    lock = read_json(lock_path) if lock_path.is_file() else {}
    for file in files:
        if file_status(file, lock, runtime)[0] == "ok":
            continue
        print(f"{file.what}: {file.key}", flush=True)
        path, published = file.fetch(runtime)
        digest = sha256_of(path)
        if published is not None and digest != published:
            raise UserError(f"{path}: the sha256 differs from the published one: remove the file and run again")
        recorded = lock.get(file.key, {}).get("sha256")
        if published is None and recorded not in (None, digest):
            raise UserError(
                f"{path} differs from the first download ({lock_path}): remove its entry to accept the new file"
            )
        lock[file.key] = {"bytes": path.stat().st_size, "sha256": digest, "verified": published is not None}
        write_json(lock_path, lock)


def main() -> int:
    """Run the script and return its exit code."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--check", action="store_true", help="print the state of all files; exit code 1 if any is missing or changed"
    )
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
