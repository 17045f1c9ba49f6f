"""LIM alone: its unit, its key, whom it trusts, and the one unit that its user may start and stop."""

import json
import time
from collections.abc import Callable

import pytest
from testinfra.host import Host

AS_LIM = "runuser -u lavalite -- systemctl --no-ask-password"
DEADLINE_SECONDS = 30


def test_it_runs_as_its_user_and_starts_with_the_node(host: Host) -> None:
    service = host.service("lavalite-lim.service")
    assert service.is_running and service.is_enabled
    assert service.systemd_properties["User"] == "lavalite"
    assert host.user("lavalite").shell == "/usr/sbin/nologin"


def test_it_listens_for_others_on_the_nodes_address(host: Host) -> None:
    address = host.ansible.get_variables()["ansible_host"]
    assert host.socket(f"tcp://{address}:7869").is_listening
    assert not host.socket("tcp://0.0.0.0:7869").is_listening
    assert host.file("/run/lavalite/lim.sock").is_socket


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/etc/lavalite/lim.conf", "root root 644"),
        ("/etc/lavalite/trust.json", "root root 644"),
        ("/var/lib/lavalite/lim", "lavalite lavalite 755"),
        ("/var/lib/lavalite/lim/node.key", "lavalite lavalite 600"),
        ("/run/lavalite/lim.sock", "lavalite lavalite 666"),
    ],
)
def test_files_are_whose_they_should_be(owner_and_mode: Callable[[str], str], path: str, wanted: str) -> None:
    assert owner_and_mode(path) == wanted


def test_all_are_trusted_for_what_they_are(host: Host) -> None:
    bundle = json.loads(host.file("/etc/lavalite/trust.json").content_string)
    assert {name: entry["role"] for name, entry in bundle.items()} == {"ctl1": "candidate", "n1": "worker"}
    assert len({entry["public"] for entry in bundle.values()}) == 2


def test_the_one_who_may_lead_leads_and_starts_the_scheduler(host: Host, is_candidate: bool) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while is_candidate and not host.service("lavalite-mbatchd.service").is_running:
        assert time.monotonic() < deadline, host.check_output("journalctl -q -n 20 -o cat -u lavalite-lim")
    assert host.file("/run/lavalite/master.lock").exists == is_candidate


def test_its_user_may_start_and_stop_no_other_unit(host: Host, is_candidate: bool) -> None:
    for verb, unit in (("start", "another"), ("stop", "lavalite-lim"), ("stop", "ssh")):
        assert host.run(f"{AS_LIM} {verb} {unit}.service").rc != 0
    assert not host.service("another.service").is_running
    assert not is_candidate or host.run(f"{AS_LIM} start lavalite-mbatchd.service").rc == 0


def test_a_workers_lim_may_start_nothing(host: Host, is_candidate: bool) -> None:
    assert host.file("/etc/polkit-1/rules.d/50-lavalite.rules").exists == is_candidate
