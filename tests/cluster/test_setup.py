"""setup_hpc.sh with local servers instead of the network, and scripts instead of module and conda."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from config import Recipe

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
HUB = {
    "timm/efficientvit_b1.r224_in1k": ["model.safetensors"],
    "depth-anything/da3metric-large": ["config.json", "model.safetensors"],
    "facebook/sam2.1-hiera-large": ["sam2.1_hiera_large.pt"],
}
COMMIT = "0" * 40
# logs its calls, rejects what conda rejects, and on `conda create --yes --prefix P` creates a venv that can import this
# environment's packages
CONDA = """#!/bin/bash
echo "conda $*" >>"$CALLS"
[ "$1" = create ] || exit 1
if [ -d "$4/conda-meta" ] && [ ! -f "$4/conda-meta/history" ]; then
    echo "CondaValueError: prefix already exists: $4"
    exit 1
fi
{python} -m venv "$4"
echo {packages} >"$4/lib/python3.11/site-packages/outer.pth"
"""
# reports FREE MiB of disk space; `df -h` is the real command
DF = """#!/bin/bash
case $1 in
    --output=avail,iavail) printf 'Avail IFree\\n%s 1000000\\n' "$FREE" ;;
    *) exec /bin/df "$@" ;;
esac
"""
MODULE = """module() { echo "module $*" >>"$CALLS"; }; export -f module"""


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves files like the hub and GitHub, with ranges; aborts halfway through files in `breaking`."""

    files: dict[str, bytes] = {}
    breaking: set[str] = set()
    requests: list[str] = []

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, head: bool):
        content = self.files.get(self.path)
        if content is None:
            return self.send_error(404)
        self.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        digest = hashlib.sha256(content).hexdigest()
        start = int((self.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in {
            "Content-Length": len(content) - start,
            "Accept-Ranges": "bytes",
            "ETag": f'"{digest}"',
            "X-Repo-Commit": COMMIT,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if head:
            return None
        body = content[start:]
        if self.path in self.breaking:
            self.breaking.discard(self.path)
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)
        return None

    def log_message(self, *arguments):
        pass


@pytest.fixture
def mirror(tmp_path):
    """URL of a server with small files of the right names; the encoder is real, with random weights."""
    torch.manual_seed(0)
    encoder = timm.create_model(Recipe().encoder)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    generator = torch.Generator().manual_seed(1)
    for model, names in HUB.items():
        for name in names:
            noise = bytes(torch.randint(256, (200_000,), generator=generator, dtype=torch.uint8).tolist())
            content = (tmp_path / "encoder.safetensors").read_bytes() if model.startswith("timm/") else noise
            Mirror.files[f"/{model}/resolve/main/{name}"] = content
    Mirror.files["/yolov8x.pt"], Mirror.files["/nyu.mat"] = b"boxes" * 50_000, b"frames" * 100_000
    digest = hashlib.sha256(Mirror.files["/yolov8x.pt"]).hexdigest()
    release = {"assets": [{"name": "yolov8x.pt", "digest": f"sha256:{digest}"}]}
    Mirror.files["/release"] = json.dumps(release).encode()
    Mirror.requests.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def run_setup(mirror, tmp_path):
    """Run setup_hpc.sh, returning (exit code, output); its calls of module and conda are logged in run.calls."""
    programs, scratch = tmp_path / "bin", tmp_path / "scratch"
    programs.mkdir()
    packages = Path(torch.__file__).resolve().parents[1]
    (programs / "conda").write_text(CONDA.format(python=sys.executable, packages=packages))
    (programs / "df").write_text(DF)
    for program in programs.iterdir():
        program.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(home),
        "SCRATCH": str(scratch),
        "CALLS": str(tmp_path / "calls"),
        "FREE": "30000",
        "HF_ENDPOINT": mirror,
        "HF_HUB_DISABLE_XET": "1",
        "YOLO_URL": f"{mirror}/yolov8x.pt",
        "YOLO_RELEASE": f"{mirror}/release",
        "NYU_URL": f"{mirror}/nyu.mat",
        "GPU_PACKAGES": "",
        "RUSTUP_HOME": str(tmp_path / "rustup"),  # pip may query a compiler's version
    }
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}

    def run(*flags: str, **settings: str) -> tuple[int, str]:
        script = f'{MODULE}\nexec bash "{ROOT / "setup_hpc.sh"}" "$@"'
        done = subprocess.run(
            ["bash", "-c", script, "bash", *flags],
            env=environment | settings,
            capture_output=True,
            text=True,
        )
        assert not list(home.iterdir()), "it wrote to $HOME"
        return done.returncode, done.stdout + done.stderr

    run.scratch, run.calls = scratch, tmp_path / "calls"
    return run


def tree(folder: Path) -> dict[str, float]:
    return {str(path): path.lstat().st_mtime for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_setup_is_resumable_and_idempotent(run_setup):
    code, out = run_setup("--check")
    assert code == 1 and "MISSING" in out and not run_setup.scratch.exists()

    # an environment whose creation was interrupted
    (run_setup.scratch / "conda_envs" / "nchsb_ml" / "conda-meta").mkdir(parents=True)
    Mirror.breaking |= {"/nyu.mat", "/facebook/sam2.1-hiera-large/resolve/main/sam2.1_hiera_large.pt"}
    code, out = run_setup()
    if code:  # one of the two downloads was aborted
        code, out = run_setup()
    assert code == 0, out
    assert any("nyu.mat bytes=" in request for request in Mirror.requests), "it did not resume"
    assert out.count("unverified") == 1 and out.count(" ok") >= 6 and "CHANGED" not in out
    assert run_setup.calls.read_text().splitlines()[0] == "module load anaconda3/2025.06"
    weights = run_setup.scratch / "model_weights"
    lock = json.loads((weights / "weights.lock").read_text())
    digest = hashlib.sha256(Mirror.files["/yolov8x.pt"]).hexdigest()
    assert lock["yolov8x.pt"] == {"bytes": 250_000, "sha256": digest, "verified": True}
    assert not lock["nyu_depth_v2_labeled.mat"]["verified"] and len(lock) == 6

    assert f"project:     {ROOT}\n" in out
    (installed,) = (run_setup.scratch / "conda_envs/nchsb_ml").rglob("__editable__*.pth")
    installed.unlink()
    code, out = run_setup("--check")
    assert code == 1 and "project:     MISSING" in out
    assert run_setup()[0] == 0 and run_setup("--check")[0] == 0

    (weights / "yolov8x.pt").unlink()
    assert run_setup(FREE="10000")[0] == 0, "it requires space for packages that are already installed"

    before, requests = tree(run_setup.scratch), len(Mirror.requests)
    assert run_setup()[0] == 0 and run_setup("--check")[0] == 0
    assert tree(run_setup.scratch) == before and len(Mirror.requests) == requests, "the second run changed files"

    script = "import timm; timm.create_model('efficientvit_b1.r224_in1k', features_only=True, pretrained=True)"
    offline = os.environ | {"HF_HOME": str(weights / "huggingface"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", script], env=offline, check=True)

    (weights / "yolov8x.pt").write_bytes(b"boxes")
    code, out = run_setup("--check")
    assert code == 1 and "CHANGED" in out
    assert run_setup()[0] == 0 and run_setup("--check")[0] == 0


def test_wrong_checksum_is_rejected(run_setup):
    Mirror.files["/yolov8x.pt"] = b"another file"
    code, out = run_setup()
    assert code == 2 and "the sha256 differs from the published one" in out
    assert not (run_setup.scratch / "model_weights" / "yolov8x.pt").exists()


def test_too_little_disk_space(run_setup):
    code, out = run_setup(FREE="10000")
    assert code == 2 and "not enough disk space" in out
    assert not list(run_setup.scratch.iterdir()) and not run_setup.calls.exists()


def test_without_scratch():
    done = subprocess.run(
        ["bash", str(ROOT / "setup_hpc.sh")], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "SCRATCH is not set" in done.stderr
