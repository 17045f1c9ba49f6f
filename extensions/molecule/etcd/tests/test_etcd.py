"""Units, sockets, keys and certificates of a member, and that nobody without a certificate is served."""

import json
from collections.abc import Callable

import pytest
from testinfra.host import Host

MEMBERS = ["etcd1", "etcd2", "etcd3"]
KEYS = "--cacert=/etc/lavalite/etcd/ca.crt --cert=/etc/lavalite/etcd/member.crt --key=/etc/lavalite/etcd/member.key"


def address(host: Host) -> str:
    return str(host.ansible.get_variables()["ansible_host"])


def test_it_runs_and_starts_with_the_node(host: Host) -> None:
    service = host.service("etcd.service")
    assert service.is_running and service.is_enabled
    assert service.systemd_properties["User"] == "etcd"


@pytest.mark.parametrize("timer", ["lavalite-etcd-check.timer", "lavalite-etcd-defragment.timer"])
def test_it_is_tended_by_timers(host: Host, timer: str) -> None:
    assert host.service(timer).is_running and host.service(timer).is_enabled


def test_what_the_timers_call_ends_well(host: Host) -> None:
    host.run_expect([0], "systemctl start lavalite-etcd-check.service")


def test_all_members_are_there(host: Host) -> None:
    ask = f"ETCDCTL_API=3 etcdctl --endpoints=https://{address(host)}:2379 {KEYS}"
    members = json.loads(host.check_output(f"{ask} member list -w json"))["members"]
    assert sorted(member["name"] for member in members) == MEMBERS
    healthy = host.run(f"{ask} endpoint health --cluster")
    assert (healthy.stdout + healthy.stderr).count("is healthy") == len(MEMBERS)


def test_nobody_without_a_certificate_is_served(host: Host) -> None:
    ask = f"ETCDCTL_API=3 etcdctl --command-timeout=2s --endpoints=https://{address(host)}:2379"
    assert host.run(f"{ask} --cacert=/etc/lavalite/etcd/ca.crt get x").rc != 0


def test_it_listens_on_its_own_address_and_on_loopback(host: Host) -> None:
    for port in (2379, 2380):
        assert host.socket(f"tcp://{address(host)}:{port}").is_listening
        assert not host.socket(f"tcp://0.0.0.0:{port}").is_listening


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/etc/lavalite/etcd/member.key", "etcd etcd 600"),
        ("/etc/lavalite/etcd/member.crt", "root root 644"),
        ("/etc/lavalite/etcd/ca.crt", "root root 644"),
        ("/etc/default/etcd", "root root 644"),
        ("/var/lib/etcd/lavalite", "etcd etcd 700"),
    ],
)
def test_files_are_whose_they_should_be(owner_and_mode: Callable[[str], str], path: str, wanted: str) -> None:
    assert owner_and_mode(path) == wanted


def test_the_authoritys_key_is_on_one_host_alone_and_guarded(
    host: Host, owner_and_mode: Callable[[str], str]
) -> None:
    if host.check_output("hostname") == MEMBERS[0]:
        assert owner_and_mode("/etc/lavalite/etcd-ca") == "root root 700"
        assert owner_and_mode("/etc/lavalite/etcd-ca/ca.key") == "root root 600"
    else:
        assert not host.file("/etc/lavalite/etcd-ca").exists
