"""A local SLURM: munge, a controller and two nodes, each with a fake L40S (/dev/null)."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
NODES = ("node1", "node2")
PATIENCE = 600  # seconds; long enough for slow machines
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
CONFIG = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=2,sched_interval=2,requeue_delay=1
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=20
MinJobAge=3600
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=32 RealMemory=256000 Gres=gpu:l40s:1
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=32 RealMemory=256000 Gres=gpu:l40s:1
PartitionName=l40s_public Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GRES = "NodeName=node[1-2] Name=gpu Type=l40s File=/dev/null\n"


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


class LocalCluster:
    """Context manager; needs root, as SLURM's daemons do."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> "LocalCluster":
        munge = self.folder / "munge"
        for folder in (munge, self.folder / "state"):
            folder.mkdir(parents=True)
            folder.chmod(0o755)
        key = munge / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        subprocess.run(["munged", "--force", f"--socket={munge / 'socket'}", *files], check=True)
        ports = free_ports(3)
        host = socket.gethostname().split(".")[0]
        (self.folder / "slurm.conf").write_text(CONFIG.format(folder=self.folder, host=host, ports=ports))
        (self.folder / "gres.conf").write_text(GRES)
        self.call("slurmctld", "-c")
        for node in NODES:
            self.start_node(node)
        self.until(lambda: self.call("sinfo", "--noheader", "--format=%T").split() == ["idle"])
        return self

    def __exit__(self, *exception):
        for name in (*NODES, "slurmctld", "munge/pid"):
            path = self.folder / (name if "/" in name else f"{name}.pid")
            if path.is_file():
                kill(int(path.read_text()), signal.SIGTERM)

    def call(self, *command: str, **options) -> str:
        """Run a command on this cluster; returns its standard output."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, **options)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def start_node(self, node: str) -> None:
        self.call("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """Simulate a power failure: kill the node's daemon and all its processes."""
        kill(int((self.folder / f"{node}.pid").read_text()), signal.SIGKILL)
        for pid in pids_of(f"slurmstepd-{node}", f"SLURMD_NODENAME={node}"):
            kill(pid, signal.SIGKILL)

    def states(self) -> dict[str, str]:
        """{job or array_task: state} of all jobs."""
        table = self.call("squeue", "--noheader", "--states=all", "--array", "--format=%i %T")
        return dict(line.split() for line in table.splitlines())

    def wait(self, jobs: list[str]) -> dict[str, str]:
        """Wait until the jobs (or all tasks of arrays) have ended; returns their states."""

        def ended() -> dict[str, str] | None:
            states = {job: state for job, state in self.states().items() if job.split("_")[0] in jobs}
            return states if states and set(states.values()) <= ENDED else None

        return self.until(ended)

    def until(self, condition):
        """Wait until `condition` is true and return its value; AssertionError after PATIENCE seconds."""
        end = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert time.monotonic() < end, f"not in {PATIENCE} s: {self.states()}"
            time.sleep(0.5)
        return value


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def pids_of(name: str, variable: str) -> list[int]:
    """PIDs of processes whose command line starts with `name` or whose environment contains `variable`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if command.startswith(name.encode()) or variable.encode() in environment.split(b"\0"):
            found.append(int(process.name))
    return found


def kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
