"""The console of a virtual machine from afar: a real scheduler, agent and command line; the machine is played.

Its console is a Unix socket that greets whoever comes and says everything again in capitals. No QEMU runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cluster import LimProcess, until
from part_nodes import World, running_node
from patience import PATIENCE_SECONDS
from whole import Whole

from lavalite.api.client import Client, ConsoleStream
from lavalite.api.models import DefinitionPut
from lavalite.base.errors import ConflictError, LavaLiteError, UnknownNameError

pytestmark = pytest.mark.asyncio(loop_scope="module")
POOLS = """
cluster: test
pools:
  all: {nodes: n1, kinds: [cpu, memory], default: true}
logical_hosts:
  v: {cpu: 1, memory: 64MiB, executor: vm, vm: {image: none.qcow2, address: 198.18.7.2/24, gateway: 198.18.7.1}}
  bare: {cpu: 1, memory: 1MiB}
"""
GREETING = b"login: "


class Machine:
    """What is at the other end: at most one comes to it at a time."""

    def __init__(self, path: Path) -> None:
        self.path, self.there, self.hearing = path, 0, asyncio.Event()
        self.hearing.set()
        self.heard = b""
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.there += 1
        self.writers.append(writer)
        try:
            writer.write(GREETING)
            while self.hearing.is_set() and (typed := await reader.read(4096)):
                self.heard += typed
                writer.write(typed.upper())
                await writer.drain()
            await self.hearing.wait()
        except OSError:
            pass
        finally:
            self.there -= 1
            self.writers.remove(writer)
            writer.close()

    async def connect(self, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert host == "v"
        return await asyncio.open_unix_connection(self.path)


class Site:
    def __init__(self, cluster: Whole, machine: Machine, leader: LimProcess) -> None:
        self.cluster, self.machine, self.leader = cluster, machine, leader

    def command(self, host: str = "v") -> list[str]:
        api = f"unix:{self.leader.folder}/m/api.sock"
        return [sys.executable, "-P", "-m", "lavalite.cli.main", "console", host, "--api", api]

    async def nobody_is_there(self) -> None:
        async def look() -> bool:
            return self.machine.there == 0

        await until(look, 30, "the console is closed")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: Any) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("console")
    machine = Machine(folder / "console.sock")
    cluster = Whole(folder / "c", {"n1": 5}, store={"kind": "sqlite", "path": str(folder / "store.db")})
    cluster.agents.clear()
    server = await asyncio.start_unix_server(machine.serve, machine.path)
    with cluster.running():
        async with running_node(cluster.lims["n1"], World(), folder / "n1", connect_console=machine.connect):
            leader = await cluster.serving(nodes=1)
            with cluster.client(leader) as client:
                client.put_definition(DefinitionPut(text=POOLS))

                async def composed() -> bool:
                    return all(host.state == "composed" for host in client.hosts()) and bool(list(client.hosts()))

                await until(composed, 60, "the hosts are composed")
            yield Site(cluster, machine, leader)
    server.close()


async def read_until(fd: int, wanted: bytes) -> bytes:
    """From a terminal, without holding up the agent, which runs here."""
    said = b""
    os.set_blocking(fd, False)

    async def look() -> bool:
        nonlocal said
        with contextlib.suppress(BlockingIOError, OSError):
            said += os.read(fd, 4096)
        return wanted in said

    await until(look, 30, f"{wanted!r} is said")
    return said


@contextlib.asynccontextmanager
async def at_console(client: Client) -> AsyncIterator[ConsoleStream]:
    """In a thread: the agent that answers runs here."""
    console = client.console("v")
    stream = await asyncio.to_thread(console.__enter__)
    try:
        yield stream
    finally:
        await asyncio.to_thread(console.__exit__, None, None, None)


def begin(command: list[str], **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, **streams)


async def ended(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, PATIENCE_SECONDS)


async def test_a_terminal_far_away_is_the_console_until_the_escape_is_typed(site: Site) -> None:
    mine, its = pty.openpty()
    process = begin(site.command(), stdin=its, stdout=its, stderr=its)
    try:
        await read_until(mine, GREETING)
        os.write(mine, b"root\r\x03\x04")  # Ctrl-C and Ctrl-D are the machine's
        said = await read_until(mine, b"ROOT\r\x03\x04")
        assert b"root" not in said.replace(b"ROOT", b""), "a raw terminal echoes nothing by itself"
        os.write(mine, b"bye")
        await read_until(mine, b"BYE")
        os.write(mine, b"last\x1dnever")
        assert await ended(process) == 0
    finally:
        process.kill()
        os.close(mine)
        os.close(its)
    await site.nobody_is_there()
    assert site.machine.heard.endswith(b"byelast"), site.machine.heard


async def test_a_pipe_leaves_at_its_end(site: Site) -> None:
    process = begin(site.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"hello")
    process.stdin.flush()
    await read_until(process.stdout.fileno(), GREETING + b"HELLO")
    process.stdin.close()
    assert await ended(process) == 0
    await site.nobody_is_there()


async def test_one_is_there_at_a_time_and_who_goes_makes_room(site: Site) -> None:
    with site.cluster.client(site.leader) as client, site.cluster.client(site.leader) as other:
        async with at_console(client) as first:
            assert await asyncio.to_thread(next, first.pieces) == GREETING
            with pytest.raises(LavaLiteError, match="used by one at a time"):
                async with at_console(other):
                    pass
            with pytest.raises(ConflictError, match="is closed"):
                other.type_console(ConsoleStream("v", "another", first.pieces), b"x")
        await site.nobody_is_there()
        async with at_console(other) as second:
            assert await asyncio.to_thread(next, second.pieces) == GREETING
            site.machine.writers[0].close()  # the machine ends
            assert await asyncio.to_thread(list, second.pieces) == []
    await site.nobody_is_there()


async def test_a_machine_that_takes_nothing_does_not_fill_our_memory(site: Site) -> None:
    site.machine.hearing.clear()
    try:
        with site.cluster.client(site.leader) as client, site.cluster.client(site.leader) as typing:
            async with at_console(client) as stream:
                with pytest.raises(LavaLiteError, match="is closed"):
                    for _ in range(2000):
                        await asyncio.to_thread(typing.type_console, stream, b"x" * 4096)
                with pytest.raises(LavaLiteError, match="broke off"):
                    await asyncio.to_thread(list, stream.pieces)
    finally:
        site.machine.hearing.set()
    await site.nobody_is_there()


async def test_what_has_no_console_says_so_in_a_sentence(site: Site) -> None:
    with site.cluster.client(site.leader) as client:
        with pytest.raises(UnknownNameError, match="there is no host nobody"), client.console("nobody"):
            pass
        with pytest.raises(ConflictError, match="bare is no virtual machine, and has"), client.console("bare"):
            pass
    done = await asyncio.to_thread(
        subprocess.run, site.command("bare"), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no virtual machine" in done.stderr, done
