"""Users, units, sockets and the modes of files. What the cluster does is tested in tests/service/test_site.py."""

import json
from collections.abc import Callable

import pytest
from testinfra.host import Host

DAEMONS = ("lavalite-lim.service", "lavalite-sbatchd.service")


def leads(host: Host) -> bool:
    return bool(host.file("/run/lavalite/master.lock").exists)


def test_the_daemons_user_cannot_log_in(host: Host) -> None:
    user = host.user("lavalite")
    assert user.uid < 1000 and user.group == "lavalite" and user.groups == ["lavalite"]
    assert user.shell == "/usr/sbin/nologin"


@pytest.mark.parametrize("unit", DAEMONS)
def test_daemons_run_and_start_with_the_node(host: Host, unit: str) -> None:
    service = host.service(unit)
    assert service.is_running and service.is_enabled
    assert service.systemd_properties["NRestarts"] == "0"


def test_who_they_run_as(host: Host) -> None:
    for unit, user in zip(DAEMONS, ("lavalite", "root"), strict=True):
        number = host.check_output("systemctl show --property=MainPID --value %s", unit)
        assert host.check_output("stat -c %%U /proc/%s", number) == user


def test_a_candidate_has_a_scheduler_that_only_its_lim_starts(host: Host, is_candidate: bool) -> None:
    unit = host.service("lavalite-mbatchd.service")
    assert unit.exists == is_candidate
    assert unit.is_running == leads(host)
    if is_candidate:
        assert host.check_output("systemctl is-enabled lavalite-mbatchd.service") == "static"


def test_sockets_of_the_node(host: Host) -> None:
    socket = host.file("/run/lavalite/lim.sock")
    assert socket.is_socket and socket.user == "lavalite"
    assert host.file("/run/lavalite/api.sock").is_socket == leads(host)


def test_who_listens_does_so_on_the_nodes_own_address_alone(host: Host, is_candidate: bool) -> None:
    address = host.ansible.get_variables()["ansible_host"]
    ports = {7869} | ({2379, 2380} if is_candidate else set()) | ({6880, 6881} if leads(host) else set())
    listening = {name.removeprefix("tcp://") for name in host.socket.get_listening_sockets() if "tcp" in name}
    ours = {name for name in listening if name.rpartition(":")[2] not in "22 53 5355"}
    beyond = {name for name in ours if not name.startswith(("127.", "::1"))}
    assert beyond == {f"{address}:{port}" for port in ports}


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/etc/lavalite", "root root 755"),
        ("/etc/lavalite/lim.conf", "root root 644"),
        ("/etc/lavalite/sbatchd.conf", "root root 644"),
        ("/etc/lavalite/trust.json", "root root 644"),
        ("/etc/systemd/system/lavalite-lim.service", "root root 644"),
        ("/etc/systemd/system/lavalite-sbatchd.service", "root root 644"),
        ("/etc/lavalite/tls/node.key", "lavalite lavalite 600"),
        ("/opt/lavalite/releases", "root root 755"),
        ("/var/lib/lavalite/lim/node.key", "lavalite lavalite 600"),
    ],
)
def test_files_are_whose_they_should_be(owner_and_mode: Callable[[str], str], path: str, wanted: str) -> None:
    assert owner_and_mode(path) == wanted


def test_nothing_of_a_release_can_be_written_by_its_daemons(host: Host) -> None:
    assert host.file("/opt/lavalite/current").is_symlink
    assert host.check_output(r"find /opt/lavalite ! -type l \( ! -user root -o -perm /022 \)") == ""


def test_all_know_the_same_keys(host: Host) -> None:
    names = host.ansible.get_variables()["groups"]["lavalite_nodes"]
    assert sorted(json.loads(host.file("/etc/lavalite/trust.json").content_string)) == sorted(names)


def test_every_unit_of_the_node_is_well(host: Host) -> None:
    assert host.check_output("systemctl --failed --no-legend --plain") == ""
