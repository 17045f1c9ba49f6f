"""The shell of attached parts, with a role that is a few lines of memory.

What is durable when, what is told, and that nobody waits for anybody's work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from lavalite.base.clock import SystemClock
from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.attachments import Attachments, is_free
from lavalite.sbatchd.attach.roles import Key, Made, NotYetError
from lavalite.wire.frames import PartOrder, PartState

PATIENCE_SECONDS = 20


def order(part: str = "a", role: Any = "disk", **more: Any) -> PartOrder:
    fields = {"host": "h", "incarnation": 1, "kind": "storage", "amount": 10}
    return PartOrder(part=part, role=role, **(fields | more))


class Machine:
    """What is made stands here, whoever made it; each step looks at what is on disk by then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stands: set[str] = set()
        self.why_not = ""
        self.not_yet = 0
        """So often it says so."""
        self.broken: dict[str, str] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun: list[str] = []
        self.began = asyncio.Event()

    async def make(self, order: PartOrder) -> Made:
        self.begun.append(order.part)
        self.began.set()
        assert self.on_disk()[order.part]["want"] == "present", "work that is not written down"
        self.stands.add(order.part)
        await self.gate.wait()
        if self.why_not:
            raise LavaLiteError(self.why_not)
        if self.not_yet:
            self.not_yet -= 1
            raise NotYetError("it is half way")
        return Made(device="/dev/loop0", path=f"/scratch/{order.part}")

    async def until_begun(self, parts: list[str]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.begun != parts:
                self.began.clear()
                await self.began.wait()

    async def remove(self, order: PartOrder) -> None:
        assert self.on_disk()[order.part]["want"] == "absent"
        self.stands.discard(order.part)

    async def check(self, order: PartOrder, made: Made) -> str:
        return self.broken.get(order.part, "")

    def on_disk(self) -> dict[str, Any]:
        found = [json.loads(file.read_text())["order"] for file in self.folder.glob("*.json")]
        return {each["part"]: each for each in found}


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "parts"
        self.machine = Machine(self.folder)
        self.told: list[list[PartState]] = []
        self.news = asyncio.Event()
        self.attachments = self.fresh()

    def fresh(self) -> Attachments:
        attachments = Attachments(self.folder, {"disk": self.machine}, SystemClock(), check_seconds=0.02)
        attachments.tell = self.hear
        return attachments

    def hear(self, picture: list[PartState]) -> None:
        self.told.append(picture)
        self.news.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Attachments]:
        self.attachments = self.fresh()
        run = asyncio.create_task(self.attachments.run())
        try:
            yield self.attachments
        finally:
            run.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await run

    async def until(self, condition: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """The states by part, once they are as wanted."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                states = {each.part: each.state for each in self.told[-1]} if self.told else {}
                if condition(states):
                    return states
                self.news.clear()
                await self.news.wait()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_from_order_to_gone(bench: Bench) -> None:
    async with bench.running() as attachments:
        attachments.order([order()])
        await bench.until(lambda states: states == {"a": "ready"})
        assert attachments.scratch("h") == "/scratch/a" and attachments.scratch("other") == ""
        attachments.order([order(want="absent")])
        await bench.until(lambda states: states == {"a": "gone"})
    assert not bench.machine.stands and not list(bench.folder.iterdir())


async def test_what_it_takes_long_to_make_holds_up_nobody(bench: Bench) -> None:
    bench.machine.gate.clear()
    async with bench.running() as attachments:
        attachments.order([order("a")])
        attachments.order([order("a"), order("b")])
        await bench.machine.until_begun(["a", "b"])
        bench.machine.gate.set()
        await bench.until(lambda states: states == {"a": "ready", "b": "ready"})


async def test_what_is_not_ready_yet_is_asked_for_until_it_is(bench: Bench) -> None:
    bench.machine.not_yet = 3
    async with bench.running() as attachments:
        attachments.order([order()])
        await bench.until(lambda states: states == {"a": "ready"})
        assert bench.machine.begun == ["a"] * 4
        assert all(not picture or picture[0].state == "ready" for picture in bench.told)


async def test_killed_in_mid_work_it_is_begun_again_by_the_next(bench: Bench) -> None:
    bench.machine.gate.clear()
    async with bench.running() as attachments:
        attachments.order([order()])
        await bench.machine.until_begun(["a"])
    assert bench.machine.stands == {"a"}, "half made"
    bench.machine.gate.set()
    async with bench.running() as attachments:
        await bench.until(lambda states: states == {"a": "ready"})
        attachments.order([order(want="absent")])
        await bench.until(lambda states: states == {"a": "gone"})
    assert not bench.machine.stands


async def test_what_breaks_is_told_as_lost_with_its_reason(bench: Bench) -> None:
    async with bench.running() as attachments:
        attachments.order([order()])
        await bench.until(lambda states: states == {"a": "ready"})
        bench.machine.broken["a"] = "its device is gone"
        await bench.until(lambda states: states == {"a": "lost"})
        assert bench.told[-1][0].reason == "its device is gone"
    async with bench.running():
        await bench.until(lambda states: states == {"a": "lost"})


async def test_what_cannot_be_made_is_told_and_can_be_ordered_away(bench: Bench) -> None:
    bench.machine.why_not = "no room on this disk"
    async with bench.running() as attachments:
        attachments.order([order()])
        await bench.until(lambda states: states == {"a": "failed"})
        assert bench.told[-1][0].reason.startswith("no room on this disk")
        attachments.order([order(want="absent")])
        await bench.until(lambda states: states == {"a": "gone"})
    assert not bench.machine.stands


async def test_whoever_asks_is_told_again(bench: Bench) -> None:
    async with bench.running() as attachments:
        attachments.order([order()])
        await bench.until(lambda states: states == {"a": "ready"})
        before = bench.told[-1]
        bench.news.clear()
        attachments.show()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await bench.news.wait()
        assert bench.told[-1] == before


async def test_records_are_roots_alone(bench: Bench) -> None:
    async with bench.running() as attachments:
        attachments.order([order(secret="c0ffee")])
        await bench.until(lambda states: states == {"a": "ready"})
        (file,) = bench.folder.iterdir()
        assert file.stat().st_mode & 0o777 == 0o600 and bench.folder.stat().st_mode & 0o777 == 0o700


def test_names_of_files_and_units_are_nobody_elses() -> None:
    keys = [Key("h/storage/n1", "disk", 1), Key("h/storage/n1", "disk", 2), Key("h_storage_n1", "disk", 1),
            Key("../../etc/x y", "disk", 1), Key("x" * 300, "disk", 1)]  # fmt: skip
    slugs = [key.slug for key in keys]
    assert len(set(slugs)) == len(slugs)
    assert all(slug.replace("-", "").replace("_", "").isalnum() and len(slug) < 100 for slug in slugs)


def test_a_port_that_is_listened_on_is_not_free() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)
