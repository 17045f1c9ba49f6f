"""LIM as real processes: who leads, who notices, who is started and ended, and what is answered to whom."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import CLUSTER, LimCluster, LimProcess, until
from etcd_server import EtcdServer

from lavalite.base.errors import RefusedError
from lavalite.lim.supervise import Backoff
from lavalite.wire.connection import Connection
from lavalite.wire.frames import (
    AskMembers,
    AskOffer,
    AskToken,
    Bye,
    Granted,
    Leader,
    Members,
    Offer,
    Refused,
    Resign,
    WhoLeads,
)
from lavalite.wire.tokens import TrustBundle, verify

FAKE = (sys.executable, str(Path(__file__).parent / "fake_mbatchd.py"), "{socket}", "{node}")


@pytest.fixture(scope="module")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def etcd(etcd_server: EtcdServer) -> Iterator[dict[str, Any]]:
    """The store of a test's own; a test that pauses etcd gets it back running."""
    yield {"kind": "etcd", "endpoints": etcd_server.endpoints}
    etcd_server.resume()


@pytest.fixture
def sqlite(tmp_path: Path) -> dict[str, Any]:
    return {"kind": "sqlite", "path": str(tmp_path / "store.db")}


def scheduler_pids(lim: LimProcess) -> list[int]:
    """Of all fake schedulers that said that they are ready, in order."""
    return [int(pid) for pid in re.findall(r"^(\d+) ready", lim.scheduler_log, re.M)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def scheduler_of(lim: LimProcess, count: int = 1) -> int:
    """The pid of the `count`th scheduler that LIM started, once it is ready."""

    async def look() -> int:
        pids = scheduler_pids(lim)
        return pids[count - 1] if len(pids) >= count else 0

    return int(await until(look, 20, f"{lim.node} has started {count} schedulers"))


async def until_true(condition: Any, seconds: float, what: str) -> None:
    async def look() -> bool:
        return bool(condition())

    await until(look, seconds, what)


# --- leadership -----------------------------------------------------------------------------------------------


@pytest.mark.etcd
async def test_the_killed_leader_is_followed_by_another_under_a_higher_epoch(
    tmp_path: Path, etcd: dict[str, Any]
) -> None:
    nodes = LimCluster(tmp_path, {"n1": 10, "n2": 5, "n3": 1}, ("w1",), store=etcd, command=FAKE)
    with nodes.running():
        first = await nodes.leader()
        before = await first.leader()
        assert first.lock_path.exists()
        old_scheduler = await scheduler_of(first)
        first.kill()
        second = await nodes.leader(above=before.epoch or (0, 0))
        assert second is not first
        await scheduler_of(second)
        await until_true(lambda: not alive(old_scheduler), 5, "the orphaned scheduler ends by its deadline")

        async def worker_knows() -> bool:
            found = await nodes["w1"].leader()
            return found.node == second.node and not found.mine and found.mbatchd_address == "127.0.0.1:1"

        await until(worker_knows, 10, "the worker learns of the new leader, and of where its scheduler serves")
        locks = [lim.node for lim in nodes.lims.values() if lim.process and lim.lock_path.exists()]
        assert locks == [second.node]


@pytest.mark.etcd
async def test_a_leader_that_was_frozen_past_its_lease_steps_down_before_anything_else(
    tmp_path: Path, etcd: dict[str, Any]
) -> None:
    nodes = LimCluster(tmp_path, {"n1": 10, "n2": 5}, store=etcd, command=FAKE)
    with nodes.running():
        frozen = await nodes.leader()
        scheduler = await scheduler_of(frozen)
        before = await frozen.leader()
        frozen.pause()
        await until_true(lambda: "over" in frozen.scheduler_log, 10, "its scheduler ends itself meanwhile")
        other = await nodes.leader(above=before.epoch or (0, 0))
        said_before = len(frozen.log)
        frozen.resume()
        await until_true(lambda: "leads no more" in frozen.log[said_before:], 10, "it steps down")
        assert not await frozen.leads()
        assert not frozen.lock_path.exists()
        events = re.findall(r'"event": "([^"]*)"', frozen.log[said_before:])
        assert not set(events) & {"this LIM leads", "mbatchd started", "handing over"}, events
        assert scheduler_pids(frozen) == [scheduler]
        assert await other.leads()


@pytest.mark.etcd
async def test_without_the_store_the_leader_steps_down_by_its_own_deadline(
    tmp_path: Path, etcd: dict[str, Any], etcd_server: EtcdServer
) -> None:
    nodes = LimCluster(tmp_path, {"n1": 10, "n2": 5}, store=etcd, command=FAKE)
    with nodes.running():
        leader = await nodes.leader()
        scheduler = await scheduler_of(leader)
        deadline = (await leader.leader()).deadline
        assert deadline is not None
        etcd_server.pause()
        await until_true(lambda: not leader.lock_path.exists(), 10, "the lock is gone")
        gone = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert not await leader.leads()
        # One renewal more may have been on its way; and it must not have taken longer than a lease either.
        assert gone < deadline + 3 + 1.5
        await until_true(lambda: not alive(scheduler), 5, "the scheduler is gone with it")
        etcd_server.resume()
        await nodes.leader()


@pytest.mark.etcd
async def test_a_store_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    server = EtcdServer(tmp_path / "etcd")
    nodes = LimCluster(tmp_path, {"n1": 10}, store={"kind": "etcd", "endpoints": server.endpoints})
    with nodes.running():
        try:
            await until_true(lambda: "the store does not answer" in nodes["n1"].log, 20, "it says what it waits for")
            assert (await nodes["n1"].leader()).node == ""
            server.start()
            await nodes.leader()
        finally:
            nodes["n1"].stop()
            server.stop()


async def test_resigning_hands_over_to_another_candidate(tmp_path: Path, sqlite: dict[str, Any]) -> None:
    nodes = LimCluster(tmp_path, {"n1": 10, "n2": 1}, store=sqlite, command=FAKE)
    with nodes.running():
        first = await nodes.leader()
        scheduler = await scheduler_of(first)
        epoch = (await first.leader()).epoch or (0, 0)
        assert isinstance(await first.ask(Resign()), Bye)
        second = await nodes.leader(above=epoch)
        assert second is not first, "the cool-down lets even a lower priority win"
        assert not alive(scheduler)
        refused = await first.ask(Resign())
        assert isinstance(refused, Refused) and refused.code == "not_leader"


async def test_who_resigns_alone_leads_again_at_once(tmp_path: Path, sqlite: dict[str, Any]) -> None:
    nodes = LimCluster(tmp_path, {"n1": 5}, store=sqlite, command=FAKE, lease_ttl_seconds=60)
    with nodes.running():
        lim = await nodes.leader()
        await scheduler_of(lim)
        assert isinstance(await lim.ask(Resign()), Bye)
        await scheduler_of(lim, 2)  # long before a cool-down of three minutes would be over


async def test_a_leader_whose_scheduler_cannot_run_lets_another_lead(tmp_path: Path, sqlite: dict[str, Any]) -> None:
    script = 'if [ "$0" = n1 ]; then exit 1; fi; exec "$@"'
    command = ("sh", "-c", script, "{node}", *FAKE)
    nodes = LimCluster(tmp_path, {"n1": 10, "n2": 1}, store=sqlite, command=command)
    with nodes.running():
        await scheduler_of(nodes["n2"])
        assert await nodes["n2"].leads()
        assert "the scheduler cannot run here" in nodes["n1"].log


async def test_a_leader_that_is_stopped_hands_over_at_once(tmp_path: Path, sqlite: dict[str, Any]) -> None:
    nodes = LimCluster(tmp_path, {"n1": 10, "n2": 1}, store=sqlite, command=FAKE, lease_ttl_seconds=60)
    with nodes.running():
        first = await nodes.leader()
        scheduler = await scheduler_of(first)
        assert first.stop() == 0
        assert not alive(scheduler)
        assert not first.lock_path.exists()
        assert await nodes.leader() is not first, "long before the lease of a minute would have run out"


# --- supervision ----------------------------------------------------------------------------------------------


def test_back_off_doubles_up_to_ten_seconds_and_forgets_after_a_healthy_run() -> None:
    backoff = Backoff()
    assert [backoff.after(0) for _ in range(8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    assert backoff.failures == 8
    assert backoff.after(60) == 0.2
    assert backoff.failures == 0
    assert [backoff.after(1), backoff.after(1)] == [0.2, 0.4]


def test_one_that_a_person_ended_did_not_fail_unless_it_ends_at_once() -> None:
    backoff = Backoff()
    backoff.after(1)
    assert (backoff.after(5, well=True), backoff.failures) == (0.2, 0)
    assert [backoff.after(0.1, well=True) for _ in range(3)] == [0.2, 0.4, 0.8]


async def test_a_killed_scheduler_is_started_again_with_growing_pauses(
    tmp_path: Path, sqlite: dict[str, Any]
) -> None:
    nodes = LimCluster(tmp_path, {"n1": 10}, store=sqlite, command=FAKE, lease_ttl_seconds=10)
    with nodes.running():
        lim = await nodes.leader()
        for count in (1, 2, 3):
            os.kill(await scheduler_of(lim, count), signal.SIGKILL)
        await scheduler_of(lim, 4)
        assert re.findall(r'"next_start_seconds": ([0-9.]+)', lim.log) == ["0.2", "0.4", "0.8"]
        assert len([pid for pid in scheduler_pids(lim) if alive(pid)]) == 1
        await until_true(
            lambda: re.search(rf"^{scheduler_pids(lim)[-1]} deadline", lim.scheduler_log, re.M), 10, "deadlines come"
        )


async def test_a_scheduler_that_does_not_want_to_end_is_killed(tmp_path: Path, sqlite: dict[str, Any]) -> None:
    nodes = LimCluster(
        tmp_path, {"n1": 10}, store=sqlite, command=(*FAKE, "--stubborn"), drain_seconds=0.5, lease_ttl_seconds=10
    )
    with nodes.running():
        lim = await nodes.leader()
        scheduler = await scheduler_of(lim)
        assert lim.stop() == 0
        assert not alive(scheduler)


async def test_what_a_killed_lim_left_running_is_ended_before_a_new_one_starts(
    tmp_path: Path, sqlite: dict[str, Any]
) -> None:
    nodes = LimCluster(tmp_path, {"n1": 10}, store=sqlite, command=FAKE, lease_ttl_seconds=5)
    with nodes.running():
        lim = await nodes.leader()
        first = await scheduler_of(lim)
        lim.kill()
        assert alive(first)
        lim.start()
        second = await scheduler_of(lim, 2)
        assert not alive(first) and alive(second)
        assert "an mbatchd of an earlier LIM still runs" in lim.log


async def test_a_scheduler_that_cannot_be_started_is_told_in_a_sentence(
    tmp_path: Path, sqlite: dict[str, Any]
) -> None:
    nodes = LimCluster(tmp_path, {"n1": 10}, store=sqlite, command=("/nonexistent/mbatchd",))
    with nodes.running():
        lim = await nodes.leader()
        await until_true(lambda: "/nonexistent/mbatchd cannot be started" in lim.log, 10, "it is logged")
        assert await lim.leads()


# --- members --------------------------------------------------------------------------------------------------


async def members(lim: LimProcess) -> dict[str, Any]:
    answer = await lim.ask(AskMembers())
    return {m.node: m for m in answer.members} if isinstance(answer, Members) else {}


async def test_beats_count_round_trips_and_losses_of_each_member(tmp_path: Path, sqlite: dict[str, Any]) -> None:
    nodes = LimCluster(
        tmp_path, {"n1": 10, "n2": 5}, ("w1",), store=sqlite, lease_ttl_seconds=30, labels={"rack": "r1"}
    )
    with nodes.running():
        lim = await nodes.leader()

        async def all_measured() -> bool:
            found = await members(lim)
            return sorted(found) == ["n1", "n2", "w1"] and all(m.round_trip_ms for m in found.values())

        await until(all_measured, 10, "all members are heard and measured")
        offer = await nodes["w1"].answer(AskOffer())
        assert isinstance(offer, Offer)
        assert (offer.offer.node, offer.offer.labels) == ("w1", {"rack": ["r1"]})
        assert (await members(lim))["w1"].offer_version == offer.offer.version
        lost_before = (await members(lim))["w1"].lost

        lim.pause()
        await asyncio.sleep(1.5)  # the fault's length: more than three beats of 0.2 s
        lim.resume()

        async def loss_counted() -> bool:
            found = await members(lim)
            return "w1" in found and found["w1"].lost > lost_before and found["w1"].alive

        await until(loss_counted, 10, "beats that were not answered in time are counted")

        nodes["w1"].kill()

        async def silent() -> bool:
            found = await members(lim)
            return not found["w1"].alive and found["w1"].beat_age_seconds >= 1 and found["n2"].alive

        await until(silent, 10, "the killed member is seen as silent")


# --- who may ask what -----------------------------------------------------------------------------------------


async def test_tokens_speak_of_who_asks_and_belong_to_the_epoch(tmp_path: Path, sqlite: dict[str, Any]) -> None:
    nodes = LimCluster(tmp_path, {"n1": 10, "n2": 5}, ("w1",), store=sqlite)
    bundle = TrustBundle.load(nodes.bundle_path)
    with nodes.running():
        lim = await nodes.leader()
        epoch = (await lim.leader()).epoch
        for asked, audience, subject in (
            (nodes["w1"], "mbatchd", "w1"),
            (nodes["n2"], "mbatchd", "n2"),
            (nodes["n1"], "api", f"user:{_me()}:{os.getuid()}:{os.getgid()}"),
            (nodes["n2"], "api", f"user:{_me()}:{os.getuid()}:{os.getgid()}"),
        ):

            async def granted(asked: LimProcess = asked, audience: str = audience) -> Granted | None:
                answer = await asked.ask(AskToken(audience=audience))
                return answer if isinstance(answer, Granted) else None

            grant = await until(granted, 10, f"{asked.node} gets a token for {audience}")
            claims = verify(grant.token, bundle, subject=subject, audience=audience, epoch=epoch, now=time.time())
            assert claims.issuer == lim.node
        refused = await nodes["w1"].ask(AskToken(audience="api"))
        assert isinstance(refused, Refused) and refused.code == "not_a_voucher"


def _me() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


async def test_alone_without_a_bundle_it_trusts_itself(tmp_path: Path, sqlite: dict[str, Any]) -> None:
    nodes = LimCluster(tmp_path, {"n1": 10}, store=sqlite)
    del nodes["n1"].config["trust_bundle_path"]
    with nodes.running():
        lim = await nodes.leader()
        assert isinstance(await lim.answer(AskToken(audience="api")), Granted)
        granted = await lim.answer(AskToken(audience="mbatchd"))
        assert isinstance(granted, Granted)
        bundle = TrustBundle.load(lim.folder / "trust.json")
        epoch = (await lim.leader()).epoch
        assert verify(granted.token, bundle, subject="n1", audience="mbatchd", epoch=epoch, now=time.time()).role
        connection, _ = await Connection.open(lim.socket, lim.hello().model_copy(update={"cluster": ""}))
        await connection.close()
        with pytest.raises(RefusedError, match="This is cluster test, not 'other'"):
            await Connection.open(lim.socket, lim.hello().model_copy(update={"cluster": "other"}))

        async def member() -> bool:
            return "n1" in await members(lim)

        await until(member, 10, "it beats to itself")


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """What is connected inside is connected by another user, as the kernel sees it."""
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can ask as somebody else")
async def test_other_users_may_ask_who_leads_and_for_a_token_of_their_own(sqlite: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="lavalite-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        nodes = LimCluster(folder, {"n1": 10}, store=sqlite)
        (folder / "n1").chmod(0o755)
        with nodes.running():
            lim = await nodes.leader()
            epoch = (await lim.leader()).epoch
            with as_nobody():
                connection, _ = await Connection.open(lim.socket, lim.hello())
            answers = []
            for question in (WhoLeads(), AskToken(audience="mbatchd"), AskOffer(), AskMembers(), Resign()):
                await connection.send(question)
                answers.append((await connection.receive()).type)
            assert answers == ["leader", "refused", "refused", "refused", "refused"]
            await connection.send(AskToken(audience="api"))
            granted = await connection.receive()
            await connection.close()
            assert isinstance(granted, Granted)
            bundle = TrustBundle.load(nodes.bundle_path)
            claims = verify(granted.token, bundle, subject=None, audience="api", epoch=epoch, now=time.time())
            assert claims.subject.endswith(":65534:65534")


async def test_over_tcp_strangers_learn_who_leads_and_nothing_else(tmp_path: Path, sqlite: dict[str, Any]) -> None:
    nodes = LimCluster(tmp_path, {"n1": 10}, store=sqlite)
    with nodes.running():
        lim = await nodes.leader()
        leader = await lim.leader(tcp=True)
        assert isinstance(leader, Leader) and leader.mine and leader.deadline is None
        for question in (AskMembers(), AskOffer(), AskToken(audience="api"), Resign()):
            refused = await lim.ask(question, tcp=True)
            assert isinstance(refused, Refused) and refused.code == "unexpected_frame"
        assert await lim.leads(), "and nothing was harmed"


# --- configuration --------------------------------------------------------------------------------------------


def one(folder: Path, **changes: Any) -> LimProcess:
    config = {
        "cluster": CLUSTER,
        "node": "n1",
        "state_path": str(folder),
        "listen": "127.0.0.1:0",
        "candidate": True,
        "store": {"kind": "sqlite", "path": str(folder / "store.db")},
        "supervise": {"mode": "none"},
    }
    return LimProcess(folder, config | changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"priority": 11}, "priority"),
        ({"store": None}, "a candidate needs a store"),
        ({"candidate": False, "store": None}, "nobody to ask who leads"),
        ({"listen": "0.0.0.0:7869", "advertise": "10.0.0.1:7869"}, "there is no TLS"),
        ({"listen": "0.0.0.0:7869", "insecure": True}, "Set advertise"),
        ({"supervise": {"mode": "child"}}, "supervise.command"),
        ({"trust_bundle_path": "/nonexistent/bundle.yml"}, "/nonexistent/bundle.yml"),
        ({"prioritie": 3}, "Did you mean priority?"),
    ],
)
def test_a_wrong_configuration_is_exit_code_2_and_a_sentence(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    lim = one(tmp_path, **changes)
    lim.start()
    assert lim.wait(20) == 2
    assert sentence in lim.log
    assert "Traceback" not in lim.log


def test_a_port_in_use_is_exit_code_1_and_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        lim = one(tmp_path, listen=f"127.0.0.1:{port}")
        lim.start()
        assert lim.wait(20) == 1
    assert f"127.0.0.1:{port} is already in use" in lim.log
    assert "Traceback" not in lim.log
