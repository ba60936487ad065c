"""A Slurm cluster of two nodes on this machine: the real daemons, in a folder of their own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.loop.run.small_run import wait_until

DAEMONS = ("munged", "slurmctld", "slurmd")
_SBIN = "/usr/sbin:/usr/local/sbin"
_CONFIG = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=10
NodeName=n1 NodeHostname=localhost Port={ports[1]} CPUs={cpus}
NodeName=n2 NodeHostname=localhost Port={ports[2]} CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def missing_daemons() -> list[str]:
    """Those that are not installed (Debian: slurm-wlm, munge)."""
    return [name for name in DAEMONS if shutil.which(name, path=f"{os.environ['PATH']}:{_SBIN}") is None]


class Slurm:
    """Commands of a running cluster."""

    def __init__(self, folder: Path) -> None:
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{_SBIN}"}

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """The output of a command. Raises `subprocess.CalledProcessError`."""
        done = subprocess.run(command, cwd=cwd, env=self.environment, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Such as `RUNNING`, `PENDING` or `COMPLETED`."""
        fields = dict(one.partition("=")[::2] for one in self.run("scontrol", "--oneliner", "show", "job", job).split())
        return fields["JobState"]


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Start the daemons, wait until both nodes are idle, and end everything with the block."""
    folder.mkdir(mode=0o755)
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    user, cpus = getpass.getuser(), os.cpu_count()
    (folder / "slurm.conf").write_text(_CONFIG.format(folder=folder, user=user, cpus=cpus, ports=_free_ports(3)))
    cluster = Slurm(folder)
    munge = [
        "munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed",
    ]  # fmt: skip
    with ExitStack() as stack:
        for name, command in {
            "munged": munge, "slurmctld": ["slurmctld", "-D"], "n1": ["slurmd", "-D", "-N", "n1"], "n2": ["slurmd", "-D", "-N", "n2"],
        }.items():  # fmt: skip
            stack.enter_context(_daemon(command, folder / f"{name}.out", cluster.environment))
        wait_until(lambda: cluster.run("sinfo", "--noheader", "-o", "%T %D") == "idle 2", 60)
        yield cluster


@contextmanager
def _daemon(command: Sequence[str], output: Path, environment: dict[str, str]) -> Iterator[None]:
    with output.open("w") as stream, subprocess.Popen(command, env=environment, stdout=stream, stderr=stream) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_ports(num: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(num)]
        return [one.getsockname()[1] for one in sockets]
