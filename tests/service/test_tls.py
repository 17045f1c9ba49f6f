"""TLS between real daemons, by a throw-away authority: who has its certificate is heard, everybody else is not."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from authority import Authority
from cluster import CLUSTER, DaemonProcess, LimProcess, until
from ports import free_ports
from whole import Whole

from lavalite import __version__
from lavalite.api.client import Client, Target
from lavalite.base.errors import UnreachableError
from lavalite.wire.connection import Connection
from lavalite.wire.frames import AskToken, Granted, Hello, Leader, WhoLeads
from lavalite.wire.tls import TlsConfig

NODES = {"n1": 9, "n2": 2}
STRANGER = Hello(software_version=__version__, cluster=CLUSTER, node="n9", role="lim")
NO_TLS = "the peer does not speak TLS"
FOREIGN = "the peer's certificate is not of the cluster's authority"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder / "ca")


@pytest.fixture(scope="module")
def foreign(folder: Path) -> Authority:
    return Authority(folder / "foreign")


@pytest.fixture(scope="module")
def cluster(folder: Path, authority: Authority) -> Iterator[Whole]:
    """Two nodes that may lead. Whichever does not is the one who dials: its LIM to a LIM, its agent to mbatchd."""
    store = {"kind": "sqlite", "path": str(folder / "store.db")}
    tls = {node: authority.tls(node) for node in NODES}
    with Whole(folder / "c", NODES, store=store, tls=tls).running() as whole:
        yield whole


async def api_target(lim: LimProcess) -> Target:
    leader, granted = await lim.answer(WhoLeads()), await lim.answer(AskToken(audience="api"))
    assert isinstance(leader, Leader) and isinstance(granted, Granted)
    return Target(leader.api_url, granted.token)


@contextlib.contextmanager
def worker_lim(folder: Path, name: str, candidates: list[str], tls: dict[str, str] | None) -> Iterator[DaemonProcess]:
    """A LIM that asks candidates who leads."""
    folder.mkdir(parents=True)
    config = {
        "cluster": CLUSTER,
        "node": name,
        "state_path": str(folder),
        "listen": f"127.0.0.1:{free_ports(1)[0]}",
        "candidates": candidates,
        "beat_seconds": 0.2,
        **({"tls": tls} if tls else {}),
    }
    lim = DaemonProcess(folder, "lim", "lavalite.lim.daemon", config)
    lim.start()
    try:
        yield lim
    finally:
        lim.stop()


async def logged(log: Path, *words: str) -> None:
    async def look() -> bool:
        lines = log.read_text().splitlines() if log.exists() else []
        return any(all(word in line for word in words) for line in lines)

    await until(look, 15, f"{log.name} says {words}")


async def test_lims_and_agents_speak_tls_with_each_other(cluster: Whole) -> None:
    leader = await cluster.serving()
    job = cluster.submit(leader, ["true"])
    assert (await cluster.ended(leader, job)).state == "succeeded"
    with cluster.client(leader) as client:
        ready = [node.name for node in client.nodes() if node.state == "ready"]
    assert sorted(ready) == sorted(NODES)


async def test_people_reach_the_api_by_https_with_the_authority(cluster: Whole, authority: Authority) -> None:
    leader = await cluster.serving()
    target = await api_target(leader)
    assert target.address.startswith("https://127.0.0.1:")
    with Client([target], ca_path=str(authority.ca_path)) as client:
        assert client.status().cluster == CLUSTER


@pytest.mark.parametrize("ca", ["", "foreign"])
async def test_people_who_do_not_know_the_authority_are_told_so(cluster: Whole, foreign: Authority, ca: str) -> None:
    target = await api_target(await cluster.serving())
    ca_path = str(foreign.ca_path) if ca else ""
    with Client([target], ca_path=ca_path, timeout_seconds=5) as client, pytest.raises(UnreachableError) as caught:
        client.status()
    assert "certificate verify failed" in str(caught.value) and "LAVALITE_CA" in str(caught.value)


async def test_the_api_does_not_speak_in_the_clear(cluster: Whole) -> None:
    target = await api_target(await cluster.serving())
    plain = Target(target.address.replace("https:", "http:"), target.token)
    with Client([plain], timeout_seconds=1) as client, pytest.raises(UnreachableError):
        client.status()


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        ("nothing", "the peer shows no certificate"),
        ("foreign", FOREIGN),
        ("plain", NO_TLS),
    ],
)
@pytest.mark.parametrize("door", ["lim", "mbatchd"])
async def test_a_stranger_is_turned_away_and_the_log_says_why(
    cluster: Whole, authority: Authority, foreign: Authority, door: str, shown: str, why: str
) -> None:
    leader = await cluster.serving()
    address = leader.address if door == "lim" else str(leader.config["mbatchd_address"])
    log = leader.folder / ("lim.log" if door == "lim" else "mbatchd.log")
    context: ssl.SSLContext | None = ssl.create_default_context(cafile=str(authority.ca_path))
    if shown == "foreign":
        files = foreign.tls("stranger") | {"ca_path": str(authority.ca_path)}
        context = TlsConfig(**files).client_context()  # type: ignore[arg-type]
    elif shown == "plain":
        context = None
    with pytest.raises(UnreachableError):
        await Connection.open(address, STRANGER, ssl_context=context, timeout_seconds=3)
    await logged(log, "TLS refused", why, "127.0.0.1:")
    assert "Traceback" not in log.read_text()


async def test_a_node_with_a_foreign_certificate_says_so_and_so_does_the_leader(
    cluster: Whole, folder: Path, authority: Authority, foreign: Authority
) -> None:
    leader = await cluster.serving()
    tls = foreign.tls("n3") | {"ca_path": str(authority.ca_path)}
    with worker_lim(folder / "n3", "n3", [leader.address], tls) as lim:
        await logged(
            lim.folder / "lim.log", "a candidate cannot be asked", leader.address, "not accept our certificate"
        )
        await logged(leader.folder / "lim.log", "TLS refused", FOREIGN)


async def test_a_node_that_trusts_another_authority_says_so(cluster: Whole, folder: Path, foreign: Authority) -> None:
    leader = await cluster.serving()
    with worker_lim(folder / "n4", "n4", [leader.address], foreign.tls("n4")) as lim:
        await logged(lim.folder / "lim.log", "a candidate cannot be asked", FOREIGN)


async def test_a_leader_whose_certificate_does_not_name_it_is_not_believed(
    folder: Path, authority: Authority
) -> None:
    store = {"kind": "sqlite", "path": str(folder / "other.db")}
    tls = {"m1": authority.tls("m1", ("elsewhere.example",))}
    with Whole(folder / "w", {"m1": 9}, store=store, tls=tls).running() as whole:
        leader = await whole.lims.leader()
        await logged(leader.folder / "lim.log", "no beats", "does not name the address that was dialled")
        await logged(leader.folder / "sbatchd.log", "no session", "does not name the address that was dialled")
        with worker_lim(folder / "m2", "m2", [leader.address], authority.tls("m2")) as lim:
            await logged(lim.folder / "lim.log", "a candidate cannot be asked", "does not name the address")


async def test_an_agent_without_tls_does_not_get_in(cluster: Whole, folder: Path) -> None:
    leader = await cluster.serving()
    config = {
        "cluster": CLUSTER,
        "node": "n1",
        "state_path": str(folder / "bare"),
        "lim_socket_path": str(leader.folder / "lim.sock"),
        "allow_root": True,
    }
    agent = DaemonProcess(folder / "bare", "sbatchd", "lavalite.sbatchd.daemon", config)
    agent.start()
    try:
        await logged(folder / "bare" / "sbatchd.log", "no session", "both sides use TLS or neither does")
    finally:
        agent.stop()


async def test_a_renewed_certificate_is_shown_without_a_restart(
    cluster: Whole, folder: Path, authority: Authority
) -> None:
    leader = await cluster.serving()
    before = await shown_by(leader.address, authority)
    authority.issue(leader.node)
    assert await shown_by(leader.address, authority) != before
    await logged(leader.folder / "lim.log", "the certificate was read again")
    # A key that does not belong to the certificate, as in the middle of writing: the old pair is still shown.
    shown, key_path = await shown_by(leader.address, authority), authority.folder / f"{leader.node}.key"
    good = key_path.read_bytes()
    key_path.write_bytes(authority.issue("someone")[1].read_bytes())
    assert await shown_by(leader.address, authority) == shown
    await logged(leader.folder / "lim.log", "the new certificate is not used")
    key_path.write_bytes(good)


async def shown_by(address: str, authority: Authority) -> bytes | None:
    """The certificate that a daemon shows."""
    host, _, port = address.rpartition(":")
    context = TlsConfig(**authority.tls("looker")).client_context()  # type: ignore[arg-type]
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return bytes(shown) if shown else None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize("module", ["lim", "mbatchd", "sbatchd"])
def test_files_that_do_not_fit_are_a_fault_of_the_configuration(
    cluster: Whole, folder: Path, authority: Authority, module: str
) -> None:
    """Found by --check-config, before a daemon is restarted with them."""
    tls = authority.tls("right") | {"key_path": str(authority.issue("wrong")[1])}
    home = folder / f"check-{module}"
    lim = cluster.lims["n1"].config
    config = {"lim": lim, "mbatchd": mbatchd_config(cluster), "sbatchd": cluster.agents["n1"].config}[module]
    daemon = DaemonProcess(home, module, f"lavalite.{module}.daemon", {**config, "tls": tls})
    said = daemon.check()
    assert "the key must belong to the certificate" in said and "Traceback" not in said


def mbatchd_config(cluster: Whole) -> dict[str, object]:
    loaded: dict[str, object] = yaml.safe_load((cluster.folder / "n1" / "mbatchd.conf").read_text())
    return loaded
