"""The logical hosts that can be entered on this node, as files: STATE/hosts/NAME/enter and host.json.

What the leader says replaces what was there: a host that it does not name any more is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import sys
from collections.abc import Callable, KeysView
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from lavalite.model.job import Name
from lavalite.sbatchd import enter
from lavalite.wire.frames import HostHere

_NAMES: TypeAdapter[str] = TypeAdapter(Name)

log = structlog.get_logger(__name__)


class HostEnvironment(HostHere):
    """What is in host.json. `scratch`: where its storage is mounted."""

    scratch: str = ""


class HostFolder:
    """Call it with all hosts; it gives back the versions of those that can be entered. Files may be read by all."""

    def __init__(self, state_path: Path, scratch: Callable[[str], str] = lambda host: "") -> None:
        """`scratch`: where the storage of a host is mounted on this node; empty where it has none."""
        self._path, self._scratch = state_path / "hosts", scratch
        self._hosts: dict[str, HostHere] = {}

    async def __call__(self, hosts: list[HostHere]) -> dict[str, int]:
        return await asyncio.to_thread(self._apply, hosts)

    def find(self, name: str) -> HostEnvironment | None:
        """What jobs on a host find there; None where it cannot be entered."""
        try:
            text = (self._path / name / "host.json").read_bytes()
            return HostEnvironment.model_validate_json(text)
        except (OSError, ValidationError):
            return None

    def refresh(self) -> None:
        """What is mounted has changed."""
        for host in self._hosts.values():
            with contextlib.suppress(OSError):
                self._write(host)

    def _apply(self, hosts: list[HostHere]) -> dict[str, int]:
        applied: dict[str, int] = {}
        for host in hosts:
            try:
                _NAMES.validate_python(host.name)
                enter.core_numbers(host.devices.get("cpu", []))
                self._write(host)
                self._hosts[host.name] = host
                applied[host.name] = host.version
            except (ValidationError, ValueError, OSError) as error:
                log.error("a logical host cannot be entered here", host=host.name, reason=str(error).splitlines()[0])
        self._hosts = {name: host for name, host in self._hosts.items() if name in applied}
        self._remove_others(applied.keys())
        return applied

    def _write(self, host: HostHere) -> None:
        folder = self._path / host.name
        for made in (self._path, folder):
            made.mkdir(mode=0o755, exist_ok=True)
        there = HostEnvironment(**dict(host), scratch=self._scratch(host.name))
        _replace(folder / "host.json", there.model_dump_json(), 0o644)
        words = [sys.executable, "-I", "-S", enter.__file__, str(folder / "host.json")]
        _replace(folder / "enter", f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', 0o755)

    def _remove_others(self, names: KeysView[str]) -> None:
        with contextlib.suppress(FileNotFoundError):
            for folder in self._path.iterdir():
                if folder.name not in names:
                    shutil.rmtree(folder, ignore_errors=True)


def _replace(path: Path, text: str, mode: int) -> None:
    """Whole or not at all: Ansible may be starting a shell by it right now."""
    with contextlib.suppress(OSError):
        if path.read_text() == text:
            return
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.chmod(mode)
    fresh.replace(path)
