"""Other schedulers on loopback, for bench/endtoend.py: started, asked, and ended, all by the bench.

Slurm   as Debian packages it: slurmctld and a slurmd a node, with what makes it start jobs soonest: a pass at every
        submit and end, no authentication, no accounting, no process tracking by cgroups
HyperQueue   the server and its workers that its package on PyPI brings: threads of one process; nothing durable
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ports import free_ports

NODES, SLOTS = 8, 8
READY_SECONDS = 60.0
END_SECONDS = 300.0
POLL_SECONDS = 0.1
STOP_SECONDS = 20.0


class System(ABC):
    """A scheduler of NODES nodes of SLOTS slots, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def missing(cls) -> str:
        """What must be installed before it can run here; empty if all is there."""
        return ""

    @abstractmethod
    def running(self) -> contextlib.AbstractContextManager[None]:
        """Serving, with all nodes ready."""

    @abstractmethod
    def run_array(self, tasks: int) -> None:
        """Submit so many no-op tasks as one job, and return when it has ended."""

    @abstractmethod
    def submit(self, commands: list[list[str]]) -> None:
        """One job of one task each."""


class Slurm(System):
    PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "sinfo")

    @classmethod
    def missing(cls) -> str:
        absent = [name for name in cls.PROGRAMS if shutil.which(name) is None]
        return f"no {', '.join(absent)} on PATH. Install Debian's slurm-wlm." if absent else ""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        config = self._configure()
        self._environment = {**os.environ, "SLURM_CONF": str(config)}
        daemons = [["slurmctld", "-D", "-c", "-f", config]]
        daemons += [["slurmd", "-D", "-N", f"b{number}", "-f", config] for number in range(1, NODES + 1)]
        with contextlib.ExitStack() as stack:
            for words in daemons:
                stack.enter_context(_daemon(words, self.folder / f"{words[0]}.log", self._environment))
            _until(lambda: self._said("sinfo", "-h", "-N", "-o", "%t").split() == ["idle"] * NODES, READY_SECONDS)
            yield

    def run_array(self, tasks: int) -> None:
        number = self._sbatch("--array", f"1-{tasks}", "--wrap", "exec true")
        _until(lambda: not self._said("squeue", "-h", "-j", number).strip(), END_SECONDS)

    def submit(self, commands: list[list[str]]) -> None:
        for words in commands:
            self._sbatch("--wrap", words[-1])

    def _sbatch(self, *words: str) -> str:
        return self._said("sbatch", "--parsable", "-n1", "-o", "/dev/null", *words).strip()

    def _said(self, *command: str) -> str:
        done = subprocess.run(command, env=self._environment, cwd="/", capture_output=True, text=True, timeout=120)
        # An array that has ended and is forgotten is no error of ours.
        assert done.returncode == 0 or "Invalid job id" in done.stderr or command[0] == "sinfo", done.stderr
        return done.stdout

    def _configure(self) -> Path:
        controller, *nodes = free_ports(NODES + 1)
        host = socket.gethostname()
        lines = [
            "ClusterName=bench",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={controller}",
            "AuthType=auth/none",
            "CredType=cred/none",
            f"SlurmUser={'root' if os.geteuid() == 0 else os.environ.get('USER', str(os.geteuid()))}",
            *(f"{name}={self.folder / file}" for name, file in FILES.items()),
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "SchedulerType=sched/builtin",
            # Not put off, and not only now and then: at each submit and each end.
            "SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,default_queue_depth=10000",
            "SlurmdParameters=config_overrides",
            "MaxArraySize=100001",
            "MaxJobCount=200000",
            "MinJobAge=2",
            "CompleteWait=0",
            "EpilogMsgTime=0",
            "ReturnToService=2",
            "SlurmctldDebug=error",
            "SlurmdDebug=error",
        ]
        lines += [
            f"NodeName=b{at} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={SLOTS} State=UNKNOWN"
            for at, port in enumerate(nodes, 1)
        ]
        lines.append(f"PartitionName=all Nodes=b[1-{NODES}] Default=YES MaxTime=INFINITE State=UP")
        path = self.folder / "slurm.conf"
        path.write_text("\n".join(lines) + "\n")
        return path


FILES = {
    "StateSaveLocation": "state",
    "SlurmdSpoolDir": "spool-%n",
    "SlurmctldPidFile": "slurmctld.pid",
    "SlurmdPidFile": "%n.pid",
    "SlurmctldLogFile": "slurmctld.txt",
    "SlurmdLogFile": "%n.txt",
}


class HyperQueue(System):
    @classmethod
    def missing(cls) -> str:
        if importlib.util.find_spec("hyperqueue") is None:
            return "no Python package hyperqueue. Install it with pip."
        return ""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        from hyperqueue import Job, LocalCluster  # type: ignore[import-untyped]
        from hyperqueue.cluster import WorkerConfig  # type: ignore[import-untyped]

        self._new_job = Job
        with LocalCluster(str(self.folder)) as cluster:
            for _ in range(NODES):
                cluster.start_worker(WorkerConfig(cores=SLOTS))
            self._client = cluster.client()
            yield

    def run_array(self, tasks: int) -> None:
        job = self._new_job()
        for _ in range(tasks):
            job.program(["/bin/true"], **NO_OUTPUT)
        submitted = self._client.submit(job)
        failed = self._client.connection.wait_for_jobs([submitted.id], lambda _: None)
        assert not failed, "a task of HyperQueue's failed"

    def submit(self, commands: list[list[str]]) -> None:
        for words in commands:
            job = self._new_job()
            job.program(words, **NO_OUTPUT)
            self._client.submit(job)


NO_OUTPUT: dict[str, Any] = {"stdout": None, "stderr": None}
PEERS: dict[str, type[System]] = {"slurm": Slurm, "hyperqueue": HyperQueue}


@contextlib.contextmanager
def _daemon(words: list[Any], log: Path, environment: dict[str, str]) -> Iterator[None]:
    with log.open("ab") as file:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds:g} s"
        time.sleep(POLL_SECONDS)
