"""A bench for each executor: the executor, what it told, and a folder for what attempts write."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patience import PATIENCE_SECONDS

from lavalite.base.clock import SystemClock
from lavalite.base.errors import UnreachableError
from lavalite.sbatchd.executors import Ended, Executor, ExecutorEvent, Launch
from lavalite.sbatchd.keeper import proc
from lavalite.sbatchd.process import ProcessExecutor

DEADLINE_SECONDS = PATIENCE_SECONDS


async def until(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not so within {DEADLINE_SECONDS} s: {what}"
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    process = proc.look_at(pid)
    return process is not None and process.alive


class Bench(ABC):
    executor: Executor

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.out.mkdir()
        self.told: list[ExecutorEvent] = []
        self.breaks = 0

    async def connect(self) -> None:
        def lost() -> None:
            self.breaks += 1

        self.listed = await self.executor.connect(self.told.append, lost)

    @abstractmethod
    def leftovers(self) -> list[int]:
        """Live processes that attempts of this executor started."""

    @abstractmethod
    async def close(self) -> None:
        """End all of it, and look that nothing stays."""

    def launch(self, name: str, script: str, **more: object) -> Launch:
        values: dict[str, object] = {
            "id": name,
            "argv": ["/bin/sh", "-c", script],
            "cwd": str(self.out),
            "environment": {"PATH": os.environ["PATH"], "GREETING": "hello"},
            "stdout_path": str(self.out / f"{name}.stdout"),
            "stderr_path": str(self.out / f"{name}.stderr"),
            "own_outputs": [],
            "uid": os.geteuid(),
            "gid": os.getegid(),
            "cpus": [],
            "limits": {},
            "walltime_seconds": None,
            "grace_seconds": 0.2,
            "fence_after_seconds": 0.0,
            "contact": proc.boottime(),
        }
        return Launch(**(values | more))  # type: ignore[arg-type]

    def ends(self, name: str) -> list[Ended]:
        """As told; or as listed, where it ended before we were connected."""
        listed = [known.end() for known in self.listed.known if known.state == "ended"]
        return [event for event in (*listed, *self.told) if isinstance(event, Ended) and event.id == name]

    async def end_of(self, name: str) -> Ended:
        await until(lambda: self.ends(name), f"{name} ended")
        return self.ends(name)[0]

    def text(self, file: str) -> str:
        path = self.out / file
        return path.read_text() if path.exists() else ""

    async def pid_in(self, file: str) -> int:
        await until(lambda: self.text(file).endswith("\n"), file)
        return int(self.text(file).split()[0])


class ProcessBench(Bench):
    executor: ProcessExecutor

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder / "keeper"
        self.folder.mkdir()
        self.executor = ProcessExecutor(self.folder, keeper_idle_seconds=60)
        self.keepers: set[int] = set()

    async def connect(self) -> None:
        await super().connect()
        self.keepers.add(self.executor.keeper_pid)

    def leftovers(self) -> list[int]:
        found = []
        for pid in proc.all_processes():
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            if f"{proc.MARK}={self.folder}:".encode() in environment and alive(pid):
                found.append(pid)
        return found

    async def crash_keeper(self) -> None:
        pid = self.executor.keeper_pid
        os.kill(pid, signal.SIGKILL)
        before = self.breaks
        await until(lambda: self.breaks > before, "the broken connection is noticed")

    async def close(self) -> None:
        try:
            await self.executor.shutdown(force=True)
        except UnreachableError:
            await self.connect()
            await self.executor.shutdown(force=True)
        # Zombies of ours: the keeper is our child.
        await until(lambda: all(not alive(pid) for pid in self.keepers), "keepers ended")
        await self.executor.close()
        if self.executor._spawned:
            self.executor._spawned.wait(DEADLINE_SECONDS)
        assert self.leftovers() == []


class SystemdBench(Bench):
    """Units of this machine's own systemd: only for a machine that is the test's alone."""

    PREFIX = "bench"
    PATTERN = f"{PREFIX}-*.*.*.service"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # The default output of attempts is below a folder that everybody may pass through; a test's own is not.
        self.out.rmdir()
        self.out = Path(tempfile.mkdtemp(prefix="bench-", dir="/var/tmp"))
        self.out.chmod(0o711)
        self.folder = folder / "systemd"
        self.folder.mkdir(mode=0o700)
        self.executor = self.fresh()

    def fresh(self) -> Any:
        from lavalite.sbatchd.systemd import SystemdExecutor

        return SystemdExecutor(self.folder, SystemClock(), prefix=self.PREFIX)

    def leftovers(self) -> list[int]:
        slices = Path("/sys/fs/cgroup").glob("**/lavalite-work.slice/*/**/cgroup.procs")
        return [int(pid) for file in slices for pid in file.read_text().split()]

    def show(self, attempt: str, *names: str) -> dict[str, str]:
        said = systemctl("show", f"{self.PREFIX}-{attempt}.service", f"--property={','.join(names)}")
        return dict(line.split("=", 1) for line in said.splitlines())

    async def close(self) -> None:
        await self.executor.close()
        systemctl("kill", "--signal=KILL", self.PATTERN)
        await until(lambda: self.leftovers() == [], "all processes are gone")
        systemctl("stop", f"{self.PREFIX}-fence.service", self.PATTERN)
        systemctl("reset-failed", f"{self.PREFIX}-fence.service", self.PATTERN)
        shutil.rmtree(self.folder)
        shutil.rmtree(self.out)


def systemctl(*arguments: str) -> str:
    return subprocess.run(["systemctl", *arguments], capture_output=True, text=True, timeout=30).stdout
