"""The job files on a real SLURM: `make test-cluster`, which needs root and Debian's slurm-wlm and munge."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from local_cluster import LocalCluster, missing_programs

from config import Recipe
from dataset.manifest import read_manifest

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
ROOMS = "--scenes 8 --frames-per-scene 2"
TRAINING = ["--batch-size", "4", "--encoder-weights", "none", "--device", "cpu", "--num-workers", "0"]
SHARDS = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if missing := missing_programs():
        pytest.fail(f"{', '.join(missing)} not found: apt-get install slurm-wlm munge")
    with LocalCluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


class Account:
    """A user's $SCRATCH on the cluster, using the environment of the tests."""

    def __init__(self, cluster: LocalCluster, scratch: Path, repository: Path = ROOT, **settings: str):
        self.cluster, self.scratch, self.repository = cluster, scratch, repository
        self.data = scratch / "rooms_teacher_data"
        defaults = {"DATASET": "rooms", "TEACHERS": "reference", "ROOMS": ROOMS, "CONDA_ENV": sys.prefix}
        left_out = {"DATA_ROOT", "WEIGHTS_DIR", "CHECKPOINT_DIR", "ENGINE_DIR", "LOG_DIR"}
        kept = {name: value for name, value in cluster.environment.items() if name not in left_out}
        folders = {"SCRATCH": scratch, "CHECKPOINT_DIR": scratch / "checkpoints", "ENGINE_DIR": scratch / "engines"}
        self.environment = kept | defaults | {name: str(folder) for name, folder in folders.items()} | settings

    def call(self, *command: object, **settings: str) -> str:
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.repository,
            env=self.environment | settings,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def sbatch(self, *flags: object, **settings: str) -> str:
        log = self.scratch / "job_logs" / "%x-%A.out"
        log.parent.mkdir(parents=True, exist_ok=True)
        return self.call("sbatch", "--parsable", f"--output={log}", *flags, **settings).strip()

    def submit(self, *flags: object, **settings: str) -> dict[str, str]:
        """Submit the whole pipeline; returns {name: job ID}."""
        graph = self.call("bash", "cluster/submit.sh", *flags, **settings)
        lines = [line.split() for line in graph.splitlines() if line[:1].isalpha() and ":" not in line]
        return {words[0]: words[1] for words in lines}

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.scratch.glob("job_logs/*")))

    def weights(self) -> dict[str, torch.Tensor]:
        return torch.load(self.scratch / "checkpoints" / "best.pt", weights_only=True)["ema"]

    def epochs_done(self) -> int:
        last = self.scratch / "checkpoints" / "last.pt"
        return len(torch.load(last, weights_only=True)["notes"]["history"]) if last.is_file() else 0

    def losses(self) -> list[float]:
        (history,) = self.scratch.glob("runs/*/history.csv")
        with open(history) as file:
            return [float(row["loss"]) for row in csv.DictReader(file)]


def copy_repository(folder: Path) -> Path:
    """Copy the checkout's current files to a folder that a test may modify."""
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in files.stdout.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def edit(path: Path, before: str, after: str) -> None:
    """Replace a text that occurs once in a file."""
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


def assert_same_labels(one: Path, other: Path) -> None:
    """Assert that two data folders have the same rows and bitwise equal labels."""
    rows, others = read_manifest(one / "manifest.jsonl"), read_manifest(other / "manifest.jsonl")
    assert [(row.stem, row.split) for row in rows] == [(row.stem, row.split) for row in others]
    for row, its in zip(rows, others, strict=True):
        for name in ("da3_depth", "sam2_seg", "seg_confidence"):
            assert (np.load(getattr(row, name)) == np.load(getattr(its, name))).all(), (row.stem, name)


def assert_same_weights(one: dict, other: dict) -> None:
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def local(cluster, tmp_path_factory) -> Account:
    """The same stages run without SLURM."""
    account = Account(cluster, tmp_path_factory.mktemp("local"))
    data, python = account.data, sys.executable
    account.call(python, "rooms/prepare_rooms.py", "--out", data, *ROOMS.split())
    train = ["train.py", "--manifest", data / "manifest.jsonl", *TRAINING]
    account.call(python, *train, "--epochs", "2")
    best = account.scratch / "checkpoints" / "best.pt"
    account.call(
        python, "eval_distillation.py", "--checkpoint", best, "--manifest", data / "manifest.jsonl", "--device", "cpu"
    )
    return account


def table_4(account: Account) -> dict:
    return json.loads((account.scratch / "checkpoints" / "table_4" / "table_4.json").read_text())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_check_of_a_job_without_a_gpu(cluster, tmp_path):
    """The nodes' L40S is /dev/null."""
    account = Account(cluster, tmp_path)
    job = account.sbatch("cluster/run.slurm", "bash", "cluster/gpu_check.sh")
    assert cluster.wait([job]) == {job: "FAILED"}, account.logs()
    assert account.logs().splitlines()[-1].startswith("error: no usable GPU ("), account.logs()
    assert "ExitCode=2:0" in cluster.call("scontrol", "show", "job", job)


def test_whole_pipeline(cluster, local, tmp_path):
    account = Account(cluster, tmp_path, EXPORT_FLAGS="--skip-trt --calibration-frames 4")
    jobs = account.submit("--shards", SHARDS, "--epochs", 2, *TRAINING)
    assert list(jobs) == ["gate", "da3", "sam2", "manifest", "pack", "train", "evaluate", "export"]
    states = cluster.wait(list(jobs.values()))
    assert set(states.values()) == {"COMPLETED"} and len(states) == 6 + 2 * SHARDS, account.logs()
    assert_same_labels(account.data, local.data)
    assert_same_weights(account.weights(), local.weights())
    assert table_4(account)["rows"] == table_4(local)["rows"]
    assert {path.name for path in (tmp_path / "engines").glob("*.onnx")} == {
        f"student_{precision}.onnx" for precision in ("fp32", "fp16", "int8")
    }


def test_failed_gate_cancels_dependent_jobs(cluster, local, tmp_path):
    """Depth in millimetres, stored as if in metres."""
    data = tmp_path / "wrong_units"
    shutil.copytree(local.data / "rgb", data / "rgb")
    shutil.copy(local.data / "camera.json", data)
    for path in (local.data / "depth").glob("*.npy"):
        (data / "depth").mkdir(exist_ok=True)
        np.save(data / "depth" / path.name, np.load(path) * 1000)
    account = Account(cluster, tmp_path, DATASET="corridor", DATA=str(data))
    jobs = account.submit("--shards", 2, "--epochs", 1, *TRAINING)
    states = cluster.wait(list(jobs.values()))
    assert states.pop(jobs["gate"]) == "FAILED", account.logs()
    assert set(states.values()) == {"CANCELLED"}
    assert not (data / "da3_depth").exists() and not (tmp_path / "checkpoints").exists()


def test_a_recording_without_confidence_starts_from_another_student(cluster, local, tmp_path):
    """What corridor_loader.py writes has no confidence/, and --init brings the encoder's weights."""
    made = ("confidence", "da3_depth", "sam2_seg", "seg_confidence", "manifest.jsonl", ".cache", "gate")
    data = tmp_path / "recording"
    shutil.copytree(local.data, data, ignore=shutil.ignore_patterns(*made))
    account = Account(cluster, tmp_path, DATASET="corridor", DATA=str(data))
    job = account.sbatch("teacher_infer/teacher_infer.slurm")
    assert cluster.wait([job]) == {job: "COMPLETED"}, account.logs()
    first = local.scratch / "checkpoints" / "best.pt"
    flags = [flag for flag in TRAINING if flag not in ("--encoder-weights", "none")]
    job = account.sbatch("train.slurm", "--epochs", 1, "--init", first, *flags)
    assert cluster.wait([job]) == {job: "COMPLETED"}, account.logs()
    metadata = torch.load(account.scratch / "checkpoints" / "best.pt", weights_only=True)["notes"]
    assert metadata["encoder_start"].startswith(f"student of {first}")


def test_requeued_training_gives_the_same_weights(cluster, local, tmp_path):
    """Requeued by the operator, which kills the job, and by SLURM's warning before the time limit."""
    epochs = 12
    account = Account(cluster, tmp_path, DATA=str(local.data))
    job = account.sbatch("train.slurm", "--epochs", epochs, *TRAINING)
    cluster.until(lambda: account.epochs_done() >= 2)
    cluster.call("scontrol", "requeue", job)
    cluster.until(lambda: restarts(cluster, job) == 1)
    cluster.until(lambda: account.epochs_done() >= 5)
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    cluster.until(lambda: "; requeueing" in account.logs())
    assert cluster.wait([job]) == {job: "COMPLETED"}, account.logs()
    assert restarts(cluster, job) == 2

    whole = Account(cluster, tmp_path / "whole", DATA=str(local.data))
    job = whole.sbatch("train.slurm", "--epochs", epochs, *TRAINING)
    assert cluster.wait([job]) == {job: "COMPLETED"}, whole.logs()
    assert_same_weights(account.weights(), whole.weights())
    assert len(account.losses()) == epochs


def restarts(cluster, job: str) -> int:
    return int(re.search(r"Restarts=(\d+) ", cluster.call("scontrol", "show", "job", job)).group(1))


def test_requeued_packing_resumes(cluster, local, tmp_path):
    """Requeued by SLURM's warning and by the operator, which kills the job; training waits and packs nothing itself."""
    repository = copy_repository(tmp_path / "repository")
    cache = repository / "dataset/cache.py"
    edit(cache, "SAVE_INTERVAL = 5.0", "SAVE_INTERVAL = 0.1")
    edit(cache, "        frame = read_frame(", "        time.sleep(2)\n        frame = read_frame(")
    data = tmp_path / "rooms_teacher_data"
    shutil.copytree(local.data, data, ignore=shutil.ignore_patterns(".cache"))
    account = Account(cluster, tmp_path, repository)
    job = account.sbatch("--gres=none", "cluster/pack.slurm", *TRAINING)
    behind = account.sbatch(f"--dependency=afterok:{job}", "train.slurm", "--epochs", 1, *TRAINING)
    cluster.until(lambda: packed_frames(data) >= 2)
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    cluster.until(lambda: "; requeueing" in account.logs())
    done = packed_frames(data)
    assert "frames packed; run the same command to resume" in account.logs()
    cluster.until(lambda: packed_frames(data) > done)
    cluster.call("scontrol", "requeue", job)
    cluster.until(lambda: restarts(cluster, job) == 2)
    assert cluster.states()[behind] == "PENDING"
    assert set(cluster.wait([job, behind]).values()) == {"COMPLETED"}, account.logs()
    assert account.logs().count("already packed") >= 2, account.logs()
    logs = {path.name.partition("-")[0]: path.read_text() for path in account.scratch.glob("job_logs/*")}
    assert "frames into" not in logs["train"]
    ours, others = ({path.relative_to(root): path.read_bytes() for path in root.glob("*/*")}
                    for root in (data / ".cache", local.data / ".cache"))  # fmt: skip
    assert ours == others and len(ours) > 10


def packed_frames(data: Path) -> int:
    """Number of packed training frames in an incomplete cache."""
    return max((int(path.read_text()) for path in data.glob(".cache/.building-*/packed.json")), default=0)


def test_time_limit_requeues_the_job(cluster, local, tmp_path):
    """SLURM may warn up to a minute earlier than requested: here not before 30 s after the start."""
    account = Account(cluster, tmp_path, DATA=str(local.data))
    job = account.sbatch("--time=2", "--signal=B:USR1@30", "train.slurm", "--epochs", 500, *TRAINING)
    cluster.until(lambda: "; requeueing" in account.logs())
    cluster.until(lambda: restarts(cluster, job) == 1)
    done = account.epochs_done()
    cluster.until(lambda: account.epochs_done() > done)
    cluster.call("scancel", job)
    assert cluster.wait([job]) == {job: "CANCELLED"}


COPIES = 12  # of each frame, so that jobs run long enough to be stopped


def many_frames(local: Account, data: Path) -> None:
    """Copy the local run's data with each frame repeated, labelled by the depth teacher only."""
    folders = ("rgb", "depth", "confidence", "labels", "instances", "da3_depth")
    for folder in folders:
        (data / folder).mkdir(parents=True)
        for path in (local.data / folder).iterdir():
            for copy in range(COPIES if path.suffix != ".json" else 0):
                os.link(path, data / folder / f"{copy:02d}_{path.name}")
    for name in ("camera.json", "source.json", "da3_depth/provenance.json"):
        shutil.copy(local.data / name, data / name)
    splits = json.loads((local.data / "splits.json").read_text())
    for split, stems in splits.items():
        splits[split] = [f"{copy:02d}_{stem}" for copy in range(COPIES) for stem in stems]
    (data / "splits.json").write_text(json.dumps(splits))


def assert_same_classes(account: Account, local: Account) -> None:
    """Assert that the manifest is complete and each copy has its frame's labels."""
    expected = {row.stem: row for row in read_manifest(local.data / "manifest.jsonl")}
    rows = read_manifest(account.data / "manifest.jsonl")
    assert len(rows) == COPIES * len(expected)
    for row in rows:
        one = expected[row.stem.split("_")[1]]
        assert row.split == one.split and (np.load(row.sam2_seg) == np.load(one.sam2_seg)).all()


def test_rejected_chain_is_cancelled(cluster, tmp_path):
    account = Account(cluster, tmp_path)
    before = set(cluster.states())
    command = ["bash", "cluster/submit.sh", "--shards", "100000"]  # more than SLURM's MaxArraySize
    done = subprocess.run(command, cwd=ROOT, env=account.environment, capture_output=True, text=True)
    assert done.returncode == 2 and "sbatch rejected da3; cancelling the earlier jobs (1)" in done.stderr
    (gate,) = set(cluster.states()) - before
    assert cluster.wait([gate]) == {gate: "CANCELLED"}


def test_warning_during_startup(cluster, local, tmp_path):
    """Before the handler is installed, the signal kills Python."""
    account = Account(cluster, tmp_path, DATA=str(local.data))
    job = account.sbatch("train.slurm", "--epochs", 1, *TRAINING)
    cluster.until(lambda: "; free: " in account.logs())  # printed before Python starts
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    cluster.until(lambda: "; requeueing" in account.logs())
    assert cluster.wait([job]) == {job: "COMPLETED"}, account.logs()


def test_preemption_with_a_grace_time(cluster, local, tmp_path):
    """Only the steps receive SIGTERM, and the job is still running when they have ended, unlike a cancelled one."""
    account = Account(cluster, tmp_path, DATA=str(local.data))
    job = account.sbatch("train.slurm", "--epochs", 500, *TRAINING)
    cluster.until(lambda: account.epochs_done() >= 1)
    cluster.call("scancel", "--signal=TERM", job)
    cluster.until(lambda: "; requeueing" in account.logs())
    cluster.until(lambda: cluster.states()[job] == "RUNNING")
    done = account.epochs_done()
    cluster.until(lambda: account.epochs_done() > done)
    cluster.call("scancel", job)
    assert cluster.wait([job]) == {job: "CANCELLED"} and account.logs().count("; requeueing") == 1


def test_requeued_shard(cluster, local, tmp_path):
    """A shard that is warned halfway is requeued, and dependent jobs keep waiting."""
    account = Account(cluster, tmp_path)
    many_frames(local, account.data)
    array = account.sbatch("--array=0-1", "teacher_infer/teacher_infer.slurm", "sam2", SHARDS="2")
    behind = account.sbatch(f"--dependency=afterok:{array}", "teacher_infer/teacher_infer.slurm", "manifest")
    second = sorted(path.stem for path in (account.data / "rgb").iterdir())[1::2]
    cluster.until(lambda: any((account.data / "sam2_seg" / f"{stem}.npy").is_file() for stem in second))
    # the last task has the ID of the whole array
    cluster.call("scancel", "--batch", "--signal=USR1", f"{array}_1")
    cluster.until(lambda: "; requeueing" in account.logs())
    assert cluster.states()[behind] == "PENDING"
    states = cluster.wait([array, behind])
    assert set(states.values()) == {"COMPLETED"} and len(states) == 3, account.logs()
    assert account.logs().count("frames done") == 3, "the other task was started again, too"
    assert_same_classes(account, local)


def test_node_failure_during_an_array(cluster, local, tmp_path):
    account = Account(cluster, tmp_path)
    many_frames(local, account.data)
    array = account.sbatch("--no-requeue", f"--array=0-{SHARDS - 1}", "teacher_infer/teacher_infer.slurm", "sam2",
                           SHARDS=str(SHARDS))  # fmt: skip
    running = cluster.until(lambda: on_node(cluster, "node2"))
    done = [int(task.split("_")[1]) for task in running]
    stems = sorted(path.stem for path in (account.data / "rgb").iterdir())
    begun = [account.data / "sam2_seg" / f"{stem}.npy" for part in done for stem in stems[part::SHARDS]]
    cluster.until(lambda: any(path.is_file() for path in begun))
    cluster.kill_node("node2")
    assert not all(path.is_file() for path in begun), "it was killed when all was done"
    states = cluster.wait([array])
    cluster.start_node("node2")
    lost = [task for task, state in states.items() if state != "COMPLETED"]
    assert lost and set(running) <= set(lost), (states, running)
    numbers = ",".join(task.split("_")[1] for task in lost)
    again = account.sbatch(f"--array={numbers}", "teacher_infer/teacher_infer.slurm", "sam2", SHARDS=str(SHARDS))
    assert set(cluster.wait([again]).values()) == {"COMPLETED"}, account.logs()
    manifest = account.sbatch("teacher_infer/teacher_infer.slurm", "manifest")
    assert cluster.wait([manifest]) == {manifest: "COMPLETED"}, account.logs()
    assert_same_classes(account, local)


def on_node(cluster, node: str) -> list[str]:
    return cluster.call("squeue", "--noheader", "--array", "--states=R", f"--nodelist={node}", "--format=%i").split()


def test_distributed_training_equals_one_process(cluster, local, tmp_path):
    """Batch norm is frozen from the start, since its statistics are all that differs between a batch and its parts."""
    repository = copy_repository(tmp_path / "repository")
    frozen = f"freeze_bn_fraction: float = {Recipe.freeze_bn_fraction}"
    edit(repository / "config.py", frozen, "freeze_bn_fraction: float = 1.0")
    losses = {}
    for name, numbers in {"one": (1, 1), "tasks": (1, 2), "nodes": (2, 1)}.items():
        account = Account(cluster, tmp_path / name, repository, DATA=str(local.data))
        job = account.sbatch(
            f"--nodes={numbers[0]}", f"--ntasks-per-node={numbers[1]}", "train.slurm", "--epochs", 4, *TRAINING,
            "--lr", "5e-5", OMP_NUM_THREADS="1",
        )  # fmt: skip
        assert cluster.wait([job]) == {job: "COMPLETED"}, account.logs()
        losses[name] = account.losses()
    assert losses["tasks"] == pytest.approx(losses["one"], rel=1e-4) and len(losses["one"]) == 4
    assert losses["nodes"] == pytest.approx(losses["one"], rel=1e-4)


def test_missing_data_fails_at_once(cluster, tmp_path):
    account = Account(cluster, tmp_path)
    start = time.monotonic()
    job = account.sbatch("train.slurm", *TRAINING)
    assert cluster.wait([job]) == {job: "FAILED"} and time.monotonic() - start < 60
    assert "manifest.jsonl" in account.logs()
