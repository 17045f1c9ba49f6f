"""Daemons for tests, as real processes: written configuration, start, kill, pause, and waiting for conditions.

    nodes = LimCluster(tmp_path, {"n1": 10, "n2": 5}, store=…)      # candidates and their priorities
    nodes["n1"].start()
    await until(lambda: nodes["n1"].leads(), 10, "n1 leads")

Everything listens on 127.0.0.1, on ports picked free.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from patience import PATIENCE_SECONDS
from ports import free_ports

from lavalite import __version__
from lavalite.base.errors import LavaLiteError
from lavalite.wire.connection import Connection
from lavalite.wire.frames import AnyFrame, Hello, Leader, Refused, WhoLeads
from lavalite.wire.tokens import NodeKey

STOP_SECONDS = 60.0
POLL_SECONDS = 0.05
CLUSTER = "test"


async def until(condition: Callable[[], Awaitable[Any]], seconds: float, what: str) -> Any:
    """What `condition` gives as soon as that is true. Raises AssertionError after `seconds`, or our patience."""
    seconds = max(seconds, PATIENCE_SECONDS)
    deadline = time.monotonic() + seconds
    while not (found := await condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(POLL_SECONDS)
    return found


class DaemonProcess:
    """One daemon: `python -m MODULE --config FILE`. Its log is `FOLDER/NAME.log`.

    `before`: words before that command, such as those that enter a lab's network.
    """

    def __init__(
        self, folder: Path, name: str, module: str, config: dict[str, Any], *, before: tuple[str, ...] = ()
    ) -> None:
        self.folder, self.name, self.module, self.config = folder, name, module, config
        self.before = before
        self.process: subprocess.Popen[bytes] | None = None
        self.paused = False

    @property
    def config_path(self) -> Path:
        return self.folder / f"{self.name}.yml"

    @property
    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text()

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} does not run"
        return self.process.pid

    def start(self) -> None:
        """Write the configuration and start; does not wait until it serves."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(yaml.safe_dump(self.config))
        command = [*self.before, sys.executable, "-m", self.module, "--config", str(self.config_path)]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def check(self) -> str:
        """What it says of a configuration that is wrong (--check-config)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(yaml.safe_dump(self.config))
        command = [sys.executable, "-m", self.module, "--config", str(self.config_path), "--check-config"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=STOP_SECONDS)
        assert done.returncode != 0, done.stderr
        return done.stderr

    def stop(self) -> int:
        """End it politely, by force after STOP_SECONDS. Returns the exit code."""
        if self.process is None:
            return 0
        self.resume()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.process = None
        return code

    def kill(self) -> None:
        """SIGKILL: it cannot clean up."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait()
        self.process, self.paused = None, False

    def pause(self) -> None:
        """SIGSTOP, as a machine that swaps or a hypervisor that migrates."""
        os.kill(self.pid, signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        if self.paused:
            os.kill(self.pid, signal.SIGCONT)
            self.paused = False

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """The exit code, once it has ended by itself."""
        assert self.process is not None
        code = self.process.wait(seconds)
        self.process = None
        return code


class LimProcess(DaemonProcess):
    """The LIM of one node."""

    def __init__(self, folder: Path, config: dict[str, Any], *, before: tuple[str, ...] = ()) -> None:
        super().__init__(folder, "lim", "lavalite.lim.daemon", config, before=before)
        self.node: str = config["node"]

    @property
    def socket(self) -> str:
        return f"unix:{self.folder / 'lim.sock'}"

    @property
    def address(self) -> str:
        return str(self.config["listen"])

    @property
    def lock_path(self) -> Path:
        return self.folder / "master.lock"

    @property
    def scheduler_log(self) -> str:
        file = self.folder / "mbatchd.log"
        return file.read_text() if file.exists() else ""

    def hello(self, role: str = "local", **fields: Any) -> Hello:
        return Hello(software_version=__version__, cluster=CLUSTER, node=self.node, role=role, **fields)  # type: ignore[arg-type]

    async def ask(self, question: AnyFrame, *, tcp: bool = False) -> AnyFrame | None:
        """One question, one answer; None while nobody answers."""
        address, role = (self.address, "lim") if tcp else (self.socket, "local")
        connection = None
        try:
            connection, _ = await Connection.open(address, self.hello(role), timeout_seconds=10)
            await connection.send(question)
            async with asyncio.timeout(10):
                return await connection.receive()
        except (LavaLiteError, TimeoutError):
            return None
        finally:
            if connection is not None:
                await connection.close()

    async def leader(self, *, tcp: bool = False) -> Leader:
        """Whom this LIM takes for the leader; an empty one while it does not answer."""
        answer = await self.ask(WhoLeads(), tcp=tcp)
        assert answer is None or isinstance(answer, Leader), answer
        return answer or Leader()

    async def leads(self) -> bool:
        return (await self.leader()).mine

    async def answer(self, question: AnyFrame) -> AnyFrame:
        """Of the local socket; a refusal fails the test."""
        answer = await self.ask(question)
        assert answer is not None and not isinstance(answer, Refused), answer
        return answer


class LimCluster:
    """LIMs of candidates (node → priority) and workers, with keys and a bundle of their own.

    `command` is what a leader supervises, with `{node}` and `{socket}` filled in; none: nothing.
    """

    def __init__(
        self,
        folder: Path,
        candidates: dict[str, int],
        workers: tuple[str, ...] = (),
        *,
        store: dict[str, Any],
        command: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        self.folder = folder
        names = [*candidates, *workers]
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.bundle_path = folder / "bundle.json"
        folder.mkdir(parents=True, exist_ok=True)
        self._write_bundle(candidates, workers)
        self.lims: dict[str, LimProcess] = {}
        for name in names:
            config: dict[str, Any] = {
                "cluster": CLUSTER,
                "node": name,
                "state_path": str(folder / name),
                "listen": f"127.0.0.1:{ports[name]}",
                "trust_bundle_path": str(self.bundle_path),
                "candidates": [f"127.0.0.1:{ports[c]}" for c in candidates],
                "lease_ttl_seconds": 3,
                "beat_seconds": 0.2,
                "drain_seconds": 3,
                **options,
            }
            if name in candidates:
                words = [word.format(node=name, socket=f"unix:{folder / name}/lim.sock") for word in command]
                mode = {"mode": "child", "command": words} if words else {"mode": "none"}
                config |= {"candidate": True, "priority": candidates[name], "store": store, "supervise": mode}
            self.lims[name] = LimProcess(folder / name, config)

    def _write_bundle(self, candidates: dict[str, int], workers: tuple[str, ...]) -> None:
        bundle = {}
        for name in (*candidates, *workers):
            key = NodeKey.load_or_create(self.folder / name / "node.key")
            bundle[name] = {"public": key.public, "role": "candidate" if name in candidates else "worker"}
        self.bundle_path.write_text(json.dumps(bundle))

    def __getitem__(self, name: str) -> LimProcess:
        return self.lims[name]

    def start(self) -> None:
        for lim in self.lims.values():
            lim.start()

    async def leader(self, seconds: float = 20, *, above: tuple[int, int] = (0, 0)) -> LimProcess:
        """The LIM that leads, under an epoch above the given one."""

        async def look() -> LimProcess | None:
            for lim in self.lims.values():
                if lim.process is not None and not lim.paused:
                    found = await lim.leader()
                    if found.mine and (found.epoch or (0, 0)) > above:
                        return lim
            return None

        return await until(look, seconds, f"somebody leads above {above}")  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def running(self) -> Iterator[LimCluster]:
        """All started, and at the end all stopped, with what they left behind."""
        try:
            self.start()
            yield self
        finally:
            for lim in self.lims.values():
                with contextlib.suppress(OSError):
                    lim.stop()
                _end_leftover(lim.folder / "mbatchd.pid")


def _end_leftover(pid_path: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int(pid_path.read_text().split()[0]), signal.SIGKILL)
