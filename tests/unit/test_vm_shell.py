"""Virtual machines: what talks to programs and sockets, with stand-ins at the other end."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path

import pytest

from lavalite.base.errors import InputError, LavaLiteError
from lavalite.sbatchd.vm import accelerator
from lavalite.sbatchd.vm.console import LEAVE, bridge, console_of
from lavalite.sbatchd.vm.guest import let_go
from lavalite.sbatchd.vm.qmp import connect_unix
from lavalite.sbatchd.vm.settings import VmSettings


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo SeaBIOS; sleep 60", ""),
        ("sleep 60", "a guest did not run"),
        ("exit 1", "QEMU ended at once"),
    ],
)
async def test_kvm_works_where_a_guest_says_its_first_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    monkeypatch.setattr(accelerator, "PROBE_SECONDS", 0.5)
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\n{script.replace('sleep', 'exec sleep')}\n")
    qemu.chmod(0o755)
    found = await accelerator.why_no_kvm(qemu, Path("/dev/null"))
    assert found.startswith(why) and bool(found) == bool(why)


async def test_without_kvm_auto_emulates_and_kvm_is_refused() -> None:
    assert await accelerator.accelerator(VmSettings(vm_accelerator="tcg")) == "tcg"
    nothing = Path("/nonexistent")
    assert await accelerator.accelerator(VmSettings(qemu_path=nothing)) == "tcg"
    with pytest.raises(InputError, match="KVM does not work here"):
        await accelerator.accelerator(VmSettings(vm_accelerator="kvm", qemu_path=nothing))


def listening(path: Path) -> socket.socket:
    """A server there, however long the path is."""
    server = socket.socket(socket.AF_UNIX)
    folder = os.open(path.parent, os.O_PATH)
    server.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    server.listen()
    return server


def test_a_socket_deep_in_folders_is_reached(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    with listening(deep / "qmp"), connect_unix(deep / "qmp") as connection:
        assert connection.getpeername()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("noise\ngone disk-other\ngone disk-a\n", ""),
        ("kept disk-a target is busy.\n", "the guest keeps its disk disk-a: target is busy"),
        ("kept disk-a \x1b[31mred\x07\n", r"disk-a: \[31mred\."),  # nothing that a terminal would obey
        ("x" * 5000, "cannot be asked"),
        ("", "within 0 s"),
    ],
)
async def test_a_guest_is_asked_and_whatever_it_says_is_harmless(tmp_path: Path, answer: str, error: str) -> None:
    server = listening(tmp_path / "guest")

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"let-go disk-a\n"
        writer.write(answer.encode())

    async with await asyncio.start_unix_server(speak, sock=server):
        if error:
            with pytest.raises(LavaLiteError, match=error):
                await let_go(tmp_path / "guest", "disk-a", 0.4)
        else:
            await let_go(tmp_path / "guest", "disk-a", 5)


def test_the_console_is_that_of_the_latest_incarnation(tmp_path: Path) -> None:
    for folder in ("a-9", "a-10", "a-b-11"):
        (tmp_path / "vms" / folder).mkdir(parents=True)
        listening(tmp_path / "vms" / folder / "console").close()
    assert console_of(tmp_path, "a") == tmp_path / "vms/a-10/console"
    with pytest.raises(InputError, match="no virtual machine b"):
        console_of(tmp_path, "b")


def test_the_console_carries_bytes_both_ways_until_it_is_left() -> None:
    near, far = socket.socketpair()
    keys, typed = os.pipe()
    screen, shown = os.pipe()
    carrier = threading.Thread(target=bridge, args=(near, keys, shown))
    carrier.start()
    far.sendall(b"login: ")
    assert os.read(screen, 100) == b"login: "
    os.write(typed, b"root\r" + LEAVE + b"not sent")
    carrier.join(10)
    assert not carrier.is_alive() and far.recv(100) == b"root\r"
    for end in (keys, typed, screen, shown):
        os.close(end)
    near.close()
    far.close()
