"""Role etcd on three hosts of their own: founded, bounded, survives a member, and gives it back its place.

The tests share one lab and run in their order.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Lab

ROOT = Path(__file__).resolve().parents[2]
LINK = ROOT / ".ansible/collections/ansible_collections/lavalite/cluster"
HOSTS = ("etcd-1", "etcd-2", "etcd-3")
PLAY = [
    {
        "hosts": "lavalite_etcd",
        "gather_facts": False,
        "any_errors_fatal": True,
        "roles": ["lavalite.cluster.etcd"],
        "post_tasks": [{"ansible.builtin.debug": {"var": "etcd_endpoints"}, "run_once": True}],
    }
]

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("role_etcd")]


class Site:
    """A playbook with the role alone, on a lab."""

    def __init__(self, lab: Lab, folder: Path, **variables: Any) -> None:
        self.lab, self.folder, self.variables = lab, folder, variables
        (folder / "play.yml").write_text(json.dumps(PLAY))

    def run(self, *flags: str, hosts: tuple[str, ...] = HOSTS, **variables: Any) -> subprocess.CompletedProcess[str]:
        self.lab.write_inventory(self.folder / "inventory.json", {"lavalite_etcd": hosts})
        if not LINK.exists():
            LINK.parent.mkdir(parents=True, exist_ok=True)
            LINK.symlink_to("../../../..")
        given = ["--extra-vars", json.dumps(self.variables | variables)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        return subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "-i", "inventory.json", "play.yml", *given, *flags],
            cwd=self.folder,
            env=kept
            | {
                "ANSIBLE_COLLECTIONS_PATH": str(LINK.parents[2]),
                "ANSIBLE_HOME": str(self.folder / "home"),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_PIPELINING": "1",
            },
            capture_output=True,
            text=True,
            timeout=300,
        )

    def converge(self, *flags: str, **variables: Any) -> str:
        done = self.run(*flags, **variables)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
        return done.stdout

    def refused(self, **options: Any) -> str:
        """What a play says that ends before anything is changed."""
        done = self.run(**options)
        assert done.returncode != 0, done.stdout[-3000:]
        assert changes(done.stdout) == 0
        return done.stdout

    def ask(self, host: str, *words: str) -> subprocess.CompletedProcess[str]:
        """etcdctl on a host, as the role's own program calls it."""
        names = "set -a; eval \"$(grep '^export ETCDCTL' /usr/local/sbin/lavalite-etcd)\"; "
        return self.lab.run(host, f"{names} etcdctl {' '.join(words)}", check=False)

    def members(self, host: str) -> dict[str, int]:
        found = json.loads(self.ask(host, "member", "list", "-w", "json").stdout)["members"]
        return {member["name"]: member["ID"] for member in found}


def changes(output: str) -> int:
    recap = output.rpartition("PLAY RECAP")[2]
    return sum(int(number) for number in re.findall(r"changed=(\d+)", recap))


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def healthy(site: Site) -> int:
    """How many members answer."""
    done = site.ask("etcd-3", "endpoint", "health", "--cluster")
    return (done.stdout + done.stderr).count("is healthy")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Lab(HOSTS) as lab:
        yield Site(lab, tmp_path_factory.mktemp("role_etcd"))


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Lab(HOSTS) as lab:
        yield Site(lab, tmp_path_factory.mktemp("role_etcd_tls"), etcd_tls=True)


def test_an_even_number_is_refused_before_any_host_is_spoken_to(site: Site) -> None:
    said = site.refused(hosts=HOSTS[:2])
    assert said.count("FAILED!") == 1
    assert "etcd_members: etcd-1, etcd-2 are 2 members of etcd, and it takes 1, 3, 5 or 7. Put one more" in said
    assert "as a witness" in said


def test_an_address_that_is_none_is_refused(site: Site) -> None:
    assert "etcd_address: etcd-1 has nowhere, which is no IP address" in site.refused(etcd_address="nowhere")


def test_check_mode_from_nothing_ends_well(site: Site) -> None:
    site.converge("--check", "--diff")
    assert site.lab.run("etcd-1", "ls /etc/systemd/system/etcd.service", check=False).returncode != 0


def test_three_hosts_become_a_cluster(site: Site) -> None:
    said = site.converge()
    assert all(f"{site.lab.address(host)}:2379" in said for host in HOSTS)
    assert set(site.members("etcd-2")) == set(HOSTS)
    assert healthy(site) == 3
    assert site.ask("etcd-1", "put", "kept", "yes").returncode == 0


def test_a_second_run_changes_nothing(site: Site) -> None:
    assert changes(site.converge()) == 0


def test_who_has_not_read_what_an_interrupted_run_wrote_is_restarted_once_by_the_next(site: Site) -> None:
    started = "systemctl show --property=ExecMainStartTimestampMonotonic --value etcd"
    before = {host: site.lab.run(host, started).stdout for host in HOSTS}
    site.lab.run("etcd-2", "cd /etc/default && cp etcd etcd.new && mv etcd.new etcd")
    assert changes(site.converge("--check")) == 1
    assert changes(site.converge()) == 1
    after = {host: site.lab.run(host, started).stdout for host in HOSTS}
    assert [host for host in HOSTS if before[host] != after[host]] == ["etcd-2"]
    assert changes(site.converge()) == 0


def test_it_is_bounded_and_tended(site: Site) -> None:
    running = "tr '\\0' '\\n' < /proc/$(systemctl show --property=MainPID --value etcd)/environ"
    assert {
        "ETCD_AUTO_COMPACTION_MODE=periodic",
        "ETCD_AUTO_COMPACTION_RETENTION=1h",
        "ETCD_QUOTA_BACKEND_BYTES=4294967296",
    } <= set(site.lab.run("etcd-1", running).stdout.split())
    timers = site.lab.run("etcd-1", "systemctl list-timers --no-legend --all").stdout
    assert "lavalite-etcd-check.timer" in timers and "lavalite-etcd-defragment.timer" in timers
    site.lab.run("etcd-1", "systemctl start lavalite-etcd-defragment lavalite-etcd-check")


def test_an_alarm_fails_the_check(site: Site) -> None:
    """A quota that is too small, as after months without compaction: etcd takes no writes, and says so."""
    site.converge(etcd_quota_bytes=16 * 1024 * 1024)
    put = "head -c 1000000 /dev/zero | tr '\\0' x | etcdctl put filler > /dev/null"
    site.lab.run("etcd-1", f"for i in $(seq 40); do {put} || exit 0; done; exit 1")
    assert "NOSPACE" in site.ask("etcd-2", "alarm", "list").stdout
    assert site.lab.run("etcd-2", "systemctl start lavalite-etcd-check", check=False).returncode != 0
    assert "etcd has an alarm" in site.lab.run("etcd-2", "journalctl -u lavalite-etcd-check").stdout

    status = json.loads(site.ask("etcd-1", "endpoint", "status", "-w", "json").stdout)
    assert site.ask("etcd-1", "compact", str(status[0]["Status"]["header"]["revision"])).returncode == 0
    for host in HOSTS:
        assert site.ask(host, "defrag").returncode == 0
    site.ask("etcd-1", "alarm", "disarm")
    for host in HOSTS:
        site.lab.run(host, "systemctl start lavalite-etcd-check")


def test_the_others_go_on_without_one(site: Site) -> None:
    site.lab.power_off("etcd-1")
    until(lambda: site.ask("etcd-2", "put", "later", "too").returncode == 0, "the others take a write")
    assert "yes" in site.ask("etcd-3", "get", "kept").stdout
    assert "UNREACHABLE" in site.refused()


def test_a_member_that_lost_its_disk_is_replaced(site: Site) -> None:
    """The others get back their configuration too, and only once it has joined."""
    before = site.members("etcd-3")
    site.lab.power_on("etcd-1", keep_disk=False)
    site.converge()
    after = site.members("etcd-3")
    assert set(after) == set(HOSTS) and healthy(site) == 3
    assert {name for name in HOSTS if after[name] != before[name]} == {"etcd-1"}
    assert "yes" in site.ask("etcd-1", "get", "kept", "--consistency=s").stdout


def test_a_lost_majority_is_refused_and_nobody_starts_without_data(site: Site) -> None:
    for host in HOSTS[1:]:
        site.lab.run(host, "systemctl stop etcd; mv /var/lib/etcd/lavalite/member /var/lib/etcd/away")
        assert site.lab.run(host, "systemctl start etcd", check=False).returncode != 0
    assert "etcd_data_path: etcd-2, etcd-3 lost /var/lib/etcd/lavalite" in site.refused()
    for host in HOSTS[1:]:
        site.lab.run(host, "mv /var/lib/etcd/away /var/lib/etcd/lavalite/member; systemctl start --no-block etcd")
    until(lambda: site.ask("etcd-1", "get", "kept").returncode == 0, "a majority")


def test_with_tls_nothing_speaks_without_a_certificate(secret: Site) -> None:
    secret.converge("--check")
    secret.converge()
    assert healthy(secret) == 3
    url = f"https://{secret.lab.address('etcd-2')}:2379"
    authority = "--cacert=/etc/lavalite/etcd/ca.crt"
    asked = secret.lab.run("etcd-1", f"etcdctl --endpoints={url} {authority} get kept", check=False)
    assert asked.returncode != 0
    assert changes(secret.converge()) == 0


def test_with_tls_keys_stay_where_they_were_made(secret: Site) -> None:
    found = [secret.lab.run(host, "cd /etc/lavalite; ls -1 */*.key; sha256sum etcd/member.key") for host in HOSTS]
    assert ["etcd-ca/ca.key" in each.stdout for each in found] == [True, False, False]
    assert len({each.stdout.split()[-2] for each in found}) == 3
    assert secret.lab.run("etcd-2", "stat -c '%a %U' /etc/lavalite/etcd/member.key").stdout == "600 etcd\n"
    assert secret.lab.run("etcd-1", "stat -c '%a %U' /etc/lavalite/etcd-ca/ca.key").stdout == "600 root\n"


def test_with_tls_a_certificate_that_does_not_fit_its_host_is_refused(secret: Site) -> None:
    other = secret.lab.run("etcd-1", "cat /etc/lavalite/etcd/member.crt").stdout
    secret.lab.run("etcd-2", "cat > /etc/lavalite/etcd/member.crt", stdin=other)
    said = secret.refused()
    address = secret.lab.address("etcd-2")
    assert f"etcd_tls_path: /etc/lavalite/etcd/member.crt on etcd-2 is not made out for {address}." in said
