"""The folder of `lavalite up`: ports, paths, and configurations that the daemons themselves accept."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from lavalite.base.config import load_config
from lavalite.base.errors import ConflictError, InputError, LavaLiteError
from lavalite.cli.local_files import LONGEST_SOCKET, Ports, StateFolder, UpRecord, choose_ports, node_name
from lavalite.lim.config import LimConfig
from lavalite.mbatchd.config import MbatchdConfig
from lavalite.sbatchd.config import SbatchdConfig


@pytest.fixture
def record() -> UpRecord:
    return UpRecord(cluster="local", node="n1", ports=choose_ports(0))


def test_the_daemons_accept_their_configurations(tmp_path: Path, record: UpRecord) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.create()
    folder.write_configs(record)
    lim = load_config(folder.config_path("lim"), LimConfig)
    mbatchd = load_config(folder.config_path("mbatchd"), MbatchdConfig)
    sbatchd = load_config(folder.config_path("sbatchd"), SbatchdConfig)
    assert lim.local_socket_path == mbatchd.lim_socket_path == sbatchd.lim_socket_path == folder.lim_socket
    assert lim.mbatchd_address == mbatchd.listen
    assert lim.api_url.endswith(mbatchd.api_listen)
    assert lim.store == mbatchd.store
    assert mbatchd.socket_path == folder.api_socket
    assert {lim.node, mbatchd.node, sbatchd.node} == {"n1"}
    assert folder.config_path("lim").stat().st_mode & 0o077 == 0


def test_free_ports_differ() -> None:
    ports = choose_ports(0)
    assert len({ports.lim, ports.mbatchd, ports.api}) == 3
    assert ports.taken() == []
    first_of_clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if first_of_clients > 12_000:  # else there is no room below
        assert max(ports.lim, ports.mbatchd, ports.api) < first_of_clients, "a client could be given it before us"


def test_a_taken_port_names_the_way_out() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(ConflictError, match=f"port {port} on 127.0.0.1 is taken.*--port-base"):
            choose_ports(port)


@pytest.mark.parametrize("base", [-1, 65534, 10**6])
def test_ports_out_of_range(base: int) -> None:
    with pytest.raises(InputError, match="--port-base"):
        choose_ports(base)


def test_a_folder_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    room = 107 - len(LONGEST_SOCKET) - 1
    long = Path("/tmp") / ("x" * (room - len("/tmp/") + 1))
    with pytest.raises(InputError, match=f"at most {room} bytes"):
        StateFolder(long).create()
    assert not long.exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--state"):
        StateFolder(tmp_path / "file").create()
    with pytest.raises(InputError, match="--state"):
        StateFolder(tmp_path / "file" / "below").create()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_anothers_folder_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(InputError, match="is not this user's"):
        StateFolder(tmp_path).create()


def test_a_record_is_kept_and_a_damaged_one_is_said(tmp_path: Path, record: UpRecord) -> None:
    folder = StateFolder(tmp_path)
    assert folder.read_record() is None
    folder.write_record(record)
    assert folder.read_record() == record
    folder.record_path.write_text("{")
    with pytest.raises(LavaLiteError, match="damaged"):
        folder.read_record()


def test_usual_ports_are_those_of_the_daemons() -> None:
    assert Ports() == Ports(lim=7869, mbatchd=6881, api=6880)


@pytest.mark.parametrize(
    ("host", "node"), [("n1.example.org", "n1"), ("a b", "a-b"), ("-", "node1"), ("", "node1"), ("x" * 80, "x" * 63)]
)
def test_names_of_nodes(host: str, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert node_name() == node
