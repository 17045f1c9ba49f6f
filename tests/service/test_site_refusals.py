"""What site.yml refuses, on hosts of their own: one message with host, variable and way out, and nothing was changed.

Three bare hosts serve all cases. At the end a run is killed in the middle, and the next one finishes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import Lab
from lab_site import BIN, POOLS, ROOT, VARIABLES, until

HOSTS = ("ctl1", "ctl2", "n1")
OURS = "/etc/lavalite /opt/lavalite /var/lib/lavalite /var/lib/etcd/lavalite /usr/sbin/lavalite-lim"
GOOD: dict[str, tuple[str, ...]] = {
    "lavalite_candidates": ("ctl1",),
    "lavalite_etcd": ("ctl1",),
    "lavalite_nodes": ("ctl1", "n1"),
}

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("site_refusals"),
]


class Bare:
    """Hosts on which nothing is, and inventories for them."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LAVALITE_", "ANSIBLE_"))}
        self.environment = kept | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_HOME": str(folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_SSH_RETRIES": "0",
            "ANSIBLE_TIMEOUT": "20",
        }

    def command(
        self,
        groups: dict[str, tuple[str, ...]],
        everybody: dict[str, Any] | None = None,
        **hosts: dict[str, Any],
    ) -> list[str]:
        """ansible-playbook for an inventory of `groups`, with variables of all hosts and of single ones."""
        inventory = self.folder / "inventory"
        self.lab.write_inventory(inventory / "hosts.json", groups)
        node = groups["lavalite_nodes"][-1]
        pools = {**POOLS, "capacity": {node: {"cpu": 1, "memory": "1GiB"}}}
        pools["pools"] = {"general": {"nodes": node, "kinds": ["cpu", "memory"], "default": True}}
        (inventory / "pools.yml").write_text(yaml.safe_dump(pools))
        for name in ("group_vars", "host_vars"):
            (inventory / name).mkdir(exist_ok=True)
        (inventory / "group_vars/all.yml").write_text(yaml.safe_dump(VARIABLES | (everybody or {})))
        for host in HOSTS:
            (inventory / f"host_vars/{host}.yml").write_text(yaml.safe_dump(hosts.get(host, {})))
        return [str(BIN / "ansible-playbook"), "-i", str(inventory), "playbooks/site.yml"]

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=500)

    def refused(
        self,
        groups: dict[str, tuple[str, ...]] | None = None,
        everybody: dict[str, Any] | None = None,
        **hosts: dict[str, Any],
    ) -> str:
        """The one message with which the play ends."""
        done = self.run(self.command(groups or GOOD, everybody, **hosts))
        assert done.returncode != 0, done.stdout[-3000:]
        recap = done.stdout.rpartition("PLAY RECAP")[2]
        assert re.findall(r"changed=([1-9]\d*)", recap) == [], done.stdout[-3000:]
        assert done.stdout.count("FAILED!") == 1, done.stdout[-5000:]
        assert "Traceback" not in done.stdout + done.stderr
        (message,) = re.findall(r'"msg": (".*?(?<!\\)")', done.stdout.partition("FAILED!")[2])
        return str(json.loads(message))

    def untouched(self) -> None:
        for host in HOSTS:
            said = self.lab.run(host, f"ls -d {OURS} 2>/dev/null; id lavalite 2>/dev/null", check=False).stdout
            assert said == "", f"{host}: {said}"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    with Lab(HOSTS) as lab:
        yield Bare(lab, tmp_path_factory.mktemp("refusals"))


@contextlib.contextmanager
def on(bare: Bare, host: str, before: str, after: str) -> Iterator[None]:
    bare.lab.run(host, before)
    try:
        yield
    finally:
        bare.lab.run(host, after)


def test_a_variable_of_the_wrong_type(bare: Bare) -> None:
    said = bare.refused(n1={"lim_port": "many"})
    assert "lim_port" in said and "int" in said and "on n1. Correct it" in said
    bare.untouched()


def test_parts_for_which_there_are_no_programs(bare: Bare) -> None:
    command = bare.command(GOOD, n1={"sbatchd_parts": True})
    done = bare.run([*command, "-e", json.dumps({"sbatchd_packages": ["sudo", "nbdkit-of-nobody"]})])
    assert (
        done.returncode != 0 and "n1 has no nbdkit-of-nobody, and apt knows none there. Run apt update" in done.stdout
    )
    bare.untouched()


def test_two_candidates_and_no_witness(bare: Bare) -> None:
    pair = ("ctl1", "ctl2")
    said = bare.refused({"lavalite_candidates": pair, "lavalite_etcd": pair, "lavalite_nodes": HOSTS})
    assert said.startswith("etcd_members: ctl1, ctl2 are 2 members") and "as a witness" in said
    bare.untouched()


def test_a_file_as_the_store_of_two_candidates(bare: Bare) -> None:
    groups = {"lavalite_candidates": ("ctl1", "ctl2"), "lavalite_nodes": HOSTS}
    store = {"kind": "sqlite", "path": "/var/lib/lavalite/store.db"}
    said = bare.refused(groups, ctl1={"lim_store": store}, ctl2={"lim_store": {"kind": "etcd", "endpoints": []}})
    assert said.startswith("lim_store: ctl1, ctl2 may lead") and "Set lim_store to" in said
    bare.untouched()


def test_no_tls_and_no_word_for_it(bare: Bare) -> None:
    said = bare.refused(everybody={"lavalite_tls": False}, n1={"lim_insecure": True})
    assert said.startswith("lavalite_tls: ctl1 would listen on 198.18.0.") and "Set lavalite_tls to true" in said
    bare.untouched()


def test_tls_on_some_hosts_only(bare: Bare) -> None:
    said = bare.refused(n1={"lavalite_tls": False})
    assert said.startswith("lavalite_tls: some of ctl1, n1") and "Set it for all hosts" in said
    bare.untouched()


def test_an_unreachable_candidate(bare: Bare) -> None:
    groups = {**GOOD, "lavalite_candidates": ("ctl1", "ctl2")}
    said = bare.refused(groups, ctl2={"ansible_host": "198.18.0.250"})
    assert said.startswith("ansible_host: ctl2 (198.18.0.250) does not answer as root") and "Bring it back" in said
    bare.untouched()


def test_a_node_without_python(bare: Bare) -> None:
    with on(bare, "n1", "mv /usr/bin/python3 /usr/bin/python3.away", "mv /usr/bin/python3.away /usr/bin/python3"):
        said = bare.refused()
    assert said.startswith("preflight_python: n1 has no /usr/bin/python3 that works. Install it")
    bare.untouched()


def test_a_clock_that_is_wrong(bare: Bare) -> None:
    """The hosts of the lab share this machine's clock, so it is Python on n1 that is mistaken."""
    late = "import time; real = time.time; time.time = lambda: real() - 90"
    file = "/etc/python3.11/sitecustomize.py"
    with on(bare, "n1", f"cp {file} {file}.was; echo '{late}' > {file}", f"mv {file}.was {file}"):
        said = bare.refused()
    assert re.match(r"preflight_clock_seconds: the clock of n1 is (8|9)\d\.\d s behind the controller's", said)
    assert "timedatectl set-ntp true" in said
    bare.untouched()


def test_a_port_that_something_else_has(bare: Bare) -> None:
    other = "systemd-run --quiet --unit=other python3 -m http.server 7869; until ss -Hltn | grep -q :7869; do :; done"
    with on(bare, "n1", other, "systemctl stop other"):
        said = bare.refused()
    assert re.match(r"lim_listen: on n1 port 7869 is taken by python3 \(process \d+\)\. Stop that, or set", said)
    bare.untouched()


def test_a_candidate_whose_name_does_not_resolve(bare: Bare) -> None:
    said = bare.refused(n1={"lim_candidates": ["nowhere.invalid:7869"]})
    assert said.startswith("lim_candidates: n1 cannot resolve nowhere.invalid:7869. Correct its DNS")
    bare.untouched()


def test_people_who_are_somebody_else_on_another_host(bare: Bare) -> None:
    with (
        on(bare, "ctl1", "useradd --uid 2001 bob; useradd --uid 2003 eve", "userdel bob; userdel eve"),
        on(bare, "n1", "useradd --uid 2002 bob; useradd --uid 2003 eve", "userdel bob; userdel eve"),
    ):
        said = bare.refused(everybody={"preflight_user_ids": "refuse"})
    assert said.startswith("preflight_user_ids: bob has different user ids") and "Make them the same" in said
    bare.untouched()


def test_an_etcd_that_forms_no_quorum(bare: Bare) -> None:
    """One that is said to run already: of three members one listens."""
    groups = {name: hosts for name, hosts in GOOD.items() if name != "lavalite_etcd"}
    members = [f"{bare.lab.address('ctl2')}:{port}" for port in (2379, 2389, 2399)]
    store = {"kind": "etcd", "endpoints": members}
    everybody = {"etcd_source": "endpoints", "etcd_endpoints": members, "lim_store": store, "mbatchd_store": store}
    one = "systemd-run --quiet --unit=one python3 -m http.server 2379; until ss -Hltn | grep -q :2379; do :; done"
    with on(bare, "ctl2", one, "systemctl stop one"):
        said = bare.refused(groups, everybody)
    assert said.startswith("lim_store: ctl1 reaches 1 of 3 members of etcd") and "no majority. Start them" in said
    bare.untouched()


def test_a_certificate_that_does_not_fit_its_host(bare: Bare) -> None:
    """It is of its own authority, and for another host."""
    folder = "/etc/lavalite/tls"
    make = (
        f"mkdir -p {folder} && cd {folder} && openssl req -x509 -newkey ed25519 -nodes -days 900 -subj /CN=other "
        "-addext subjectAltName=DNS:other -keyout node.key -out node.crt && cp node.crt ca.crt"
    )
    with on(bare, "n1", make, "rm -r /etc/lavalite"):
        said = bare.refused()
        left = bare.lab.run("n1", "find /etc/lavalite -type f | sort").stdout.split()
    assert said.startswith(f"certificate_path: {folder}/node.crt on n1 is not made out for n1. Remove it there")
    assert left == [f"{folder}/{name}" for name in ("ca.crt", "node.crt", "node.key")]
    bare.untouched()


def test_a_release_that_is_there_in_part(bare: Bare) -> None:
    """As after a disk that was full, when somebody names it to go back to."""
    half = "/opt/lavalite/releases/0.1.0+0badcafe-control-py311/lib/lavalite"
    with on(bare, "ctl1", f"mkdir -p {half}; touch {half}/__init__.py", "rm -r /opt/lavalite"):
        said = bare.refused(dict.fromkeys(GOOD, ("ctl1",)), {"lavalite_release": "0.1.0+0badcafe"})
    assert said.startswith("release_wanted: ctl1 does not have 0.1.0+0badcafe, or not all of it.")
    assert "leave lavalite_release out" in said
    bare.untouched()


def test_an_interrupted_run_is_finished_by_running_again(bare: Bare, tmp_path: Path) -> None:
    """Killed when LIM's unit has just been laid down on the candidate: it is not enabled, and nothing runs."""
    command = bare.command(GOOD, {"lavalite_firewall": True})
    with (tmp_path / "first.log").open("wb") as log:
        first = subprocess.Popen(
            command, cwd=ROOT, env=bare.environment, stdout=log, stderr=log, start_new_session=True
        )
    unit = "test -f /etc/systemd/system/lavalite-lim.service"
    try:
        until(lambda: bare.lab.run("ctl1", unit, check=False).returncode == 0, "LIM's unit is there", 300)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    done = bare.run(command)
    assert done.returncode == 0, done.stdout[-6000:]
    for host in ("ctl1", "n1"):
        bare.lab.run(host, "systemctl is-active lavalite-lim lavalite-sbatchd")
    status = "/opt/lavalite/current/bin/lavalite status --output json"
    until(
        lambda: json.loads(bare.lab.run("ctl1", status).stdout)["nodes"].get("ready") == 2, "both nodes are ready", 30
    )


def test_the_firewall_lets_the_cluster_in_and_nobody_else(bare: Bare) -> None:
    """n1 is of the cluster and no candidate, ctl2 is a stranger."""
    assert [reaches(bare, "n1", port) for port in (7869, 6881, 6880, 2379, 22)] == [True, True, True, False, True]
    assert [reaches(bare, "ctl2", port) for port in (7869, 6881, 6880, 2379, 22)] == [False] * 4 + [True]


def test_the_firewall_goes_when_it_is_turned_off(bare: Bare) -> None:
    play = [{"hosts": "ctl1", "gather_facts": False, "roles": ["lavalite.cluster.firewall"]}]
    (bare.folder / "firewall.yml").write_text(json.dumps(play))
    command = bare.command(GOOD, {"lavalite_firewall": False})
    done = bare.run([*command[:-1], str(bare.folder / "firewall.yml")])
    assert done.returncode == 0, done.stdout[-3000:]
    assert reaches(bare, "ctl2", 7869)
    assert "lavalite" not in bare.lab.run("ctl1", "nft list tables").stdout


def reaches(bare: Bare, host: str, port: int) -> bool:
    """Whether a connection from `host` to ctl1 comes about."""
    connect = f"import socket; socket.create_connection(('{bare.lab.address('ctl1')}', {port}), 2)"
    return bare.lab.run(host, ["python3", "-c", connect], check=False).returncode == 0
