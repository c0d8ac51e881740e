"""A hub that is silent, that refuses, that is not needed, and the lock beside downloaded weights."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from cli import UserError

import pytest

import hub

TRAIN = Path(hub.__file__).with_name("train.py")
ENCODER = "timm/efficientvit_b1.r224_in1k"


@pytest.fixture
def silent_hub(tmp_path):
    """Environment of a hub that accepts connections and never answers, and of an empty cache."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        yield os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}


def python(code, environment):
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    return done, time.monotonic() - start


FETCH = f"""
import hub, cli
try:
    print(hub.fetch({ENCODER!r}, "model.safetensors"))
except cli.UserError as error:
    print("refused:", error)
"""


def test_a_silent_hub_is_given_up(silent_hub):
    """The hub's own client tries for over a minute a file."""
    done, seconds = python(FETCH, silent_hub)
    first, second = done.stdout.splitlines()
    assert first.startswith(f"downloading {ENCODER} from {silent_hub['HF_ENDPOINT']} into ")
    assert second.startswith("refused:") and "does not provide it (ReadTimeout" in second
    assert seconds < 3 * hub.ANSWER_TIMEOUT


def test_cached_weights_need_no_hub(silent_hub):
    snapshot = Path(silent_hub["HF_HOME"], "hub", "models--" + ENCODER.replace("/", "--"), "snapshots", "1")
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    reference = snapshot.parents[1] / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text("1")
    done, seconds = python(FETCH, silent_hub)
    assert done.stdout.strip() == str(snapshot / "model.safetensors") and seconds < hub.ANSWER_TIMEOUT
    code = f'import hub; print(hub.is_local({ENCODER!r}, ("absent", "model.safetensors")))'
    assert python(code, silent_hub)[0].stdout.strip() == "True"


def test_offline_is_said(silent_hub):
    done, _ = python(FETCH, silent_hub | {"HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE forbids a download" in done.stdout and done.stdout.count("\n") == 1


def test_a_folder_needs_no_hub(tmp_path):
    assert hub.is_local(str(tmp_path), ("config.json",))


@pytest.mark.parametrize(("choice", "code"), [("imagenet", 2), ("auto", 0)])
def test_training_without_an_answering_hub(silent_hub, manifest, tmp_path, choice, code):
    flags = ["--manifest", manifest, "--encoder-weights", choice, "--device", "cpu"]
    flags += ["--epochs", 1, "--batch-size", 2, "--data-limit", 2, "--num-workers", 0]
    flags += ["--checkpoint-dir", tmp_path / "ckpt", "--log-dir", tmp_path / "log", "--cache-dir", tmp_path / "cache"]
    done = subprocess.run(
        [sys.executable, TRAIN, *map(str, flags)], env=silent_hub, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith(f"downloading {ENCODER}") for line in lines) == 1
    if choice == "auto":
        assert sum(line.startswith("WARNING: the encoder starts from random weights") for line in lines) == 1
    else:
        assert done.stderr.count("\n") == 1 and "--encoder-weights imagenet" in done.stderr


def test_published_by_the_lock(tmp_path):
    weights = tmp_path / "yolov8x.pt"
    weights.write_bytes(b"boxes")
    assert not hub.is_published(weights)
    entry = {"bytes": 5, "sha256": hashlib.sha256(b"boxes").hexdigest(), "verified": True}
    lock = tmp_path / hub.LOCK
    lock.write_text(json.dumps({weights.name: entry}))
    assert hub.is_published(weights)
    lock.write_text(json.dumps({weights.name: entry | {"verified": False}}))
    assert not hub.is_published(weights)
    lock.write_text(json.dumps({weights.name: entry}))
    weights.write_bytes(b"other")
    assert not hub.is_published(weights)
    lock.write_text("{")
    with pytest.raises(UserError, match=r"weights\.lock"):
        hub.is_published(weights)
