"""playbooks/site.yml on hosts of their own: from nothing to a cluster that works, and that outlives its leader.

Three candidates and two workers, none with a way to the internet. The tests share one cluster and run in their order.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import Lab

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CANDIDATES, WORKERS = ["ctl1", "ctl2", "ctl3"], ["n1", "n2"]
SOCKETS = {"unix_socket": "/run/lavalite/api.sock", "lim_socket": "/run/lavalite/lim.sock"}

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("site")]


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)
    return found


class Site:
    """An inventory for the lab's hosts, and what an operator does with it."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder / "inventory"
        # What is deployed stays the same while these tests run, also where somebody edits the checkout.
        source = folder / "checkout"
        shutil.copytree(ROOT / "src/lavalite", source / "src/lavalite", ignore=shutil.ignore_patterns("__pycache__"))
        groups = {
            "lavalite_candidates": CANDIDATES,
            "lavalite_etcd": CANDIDATES,
            "lavalite_nodes": [*CANDIDATES, *WORKERS],
            "compute": WORKERS,
        }
        lab.write_inventory(self.folder / "hosts.json", groups)
        for name in ("group_vars/all.yml", "pools.yml"):
            target = self.folder / name
            target.parent.mkdir(exist_ok=True)
            target.write_text(yaml.safe_dump(VARIABLES | {"release_path": str(source)} if "vars" in name else POOLS))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LAVALITE_", "ANSIBLE_"))}
        self._environment = kept | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_HOME": str(folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
        }

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / program), "-i", str(self.folder), *arguments]
        return subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=600)

    def play(self, *arguments: str) -> str:
        """The output of a site.yml that did not fail."""
        done = self.run("ansible-playbook", "playbooks/site.yml", *arguments)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:] + self.journals()
        return done.stdout

    def job(self, host: str, user: str, **options: Any) -> dict[str, Any]:
        """The result of the module `job` on `host`, asked as `user`."""
        given = json.dumps(options | SOCKETS)
        done = self.run("ansible", host, "-b", "--become-user", user, "-m", "lavalite.cluster.job", "-a", given)
        said, arrow, result = done.stdout.partition(" => ")
        assert (arrow and "SUCCESS" in said) or "CHANGED" in said, done.stdout + done.stderr + self.journals()
        found: dict[str, Any] = json.loads(result)
        return found

    def status(self, host: str) -> dict[str, Any] | None:
        """What the API says of the cluster, by way of `host`; None while nobody answers."""
        done = self.lab.run(host, "/opt/lavalite/current/bin/lavalite status --output json", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def journals(self) -> str:
        said = []
        for name, host in self.lab.hosts.items():
            if host.on:
                line = "journalctl --no-pager -q -n 12 -u 'lavalite-*' -o cat; systemctl --failed --no-legend"
                said.append(f"\n== {name}\n{self.lab.run(name, line, check=False).stdout[-3000:]}")
        return "".join(said)


VARIABLES = {
    "lavalite_insecure": True,  # nobody else is on the lab's network
    "lim_store": {
        "kind": "etcd",
        "endpoints": "{{ groups['lavalite_etcd'] | map('extract', hostvars, 'ansible_host')"
        " | map('regex_replace', '$', ':2379') }}",
    },
    "mbatchd_store": "{{ lim_store }}",
    "lim_candidates": "{{ groups['lavalite_candidates'] | map('extract', hostvars, 'ansible_host')"
    " | map('regex_replace', '$', ':7869') }}",
}
POOLS = {
    "plugin": "lavalite.cluster.pools",
    "cluster": "lab",
    "mode": "plan",
    "capacity": {name: {"cpu": 1, "memory": "1GiB"} for name in [*CANDIDATES, *WORKERS]},
    "pools": {"general": {"nodes": {"group": "compute"}, "kinds": ["cpu", "memory"], "default": True}},
    "logical_hosts": {},
    "queues": {"normal": {"priority": 30, "default": True}},
}
PERSON = "alice"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Lab([*CANDIDATES, *WORKERS]) as lab:
        for host in lab.hosts:
            lab.run(host, f"useradd --create-home {PERSON}")
        yield Site(lab, tmp_path_factory.mktemp("site"))


def leaders(site: Site) -> list[str]:
    """Where a scheduler runs, of the hosts that are on."""
    return [
        name
        for name in CANDIDATES
        if site.lab.hosts[name].on
        and site.lab.run(name, "systemctl is-active -q lavalite-mbatchd", check=False).returncode == 0
    ]


def test_a_cluster_comes_out_of_nothing(site: Site) -> None:
    site.play()
    for host in site.lab.hosts:
        assert site.lab.run(host, "systemctl is-active lavalite-lim lavalite-sbatchd").stdout == "active\nactive\n"
    assert len(leaders(site)) == 1


def test_a_second_run_changes_nothing(site: Site) -> None:
    recap = site.play().rpartition("PLAY RECAP")[2]
    assert re.findall(r"changed=([1-9]\d*)", recap) == [], recap


def test_private_keys_stay_where_they_are_and_are_guarded(site: Site) -> None:
    bundles = set()
    for host in site.lab.hosts:
        said = site.lab.run(host, "stat -c '%U %a' /var/lib/lavalite/lim/node.key; cat /etc/lavalite/trust.json")
        first, _, bundle = said.stdout.partition("\n")
        assert first == "lavalite 600"
        bundles.add(bundle)
    (bundle,) = bundles
    assert "secret" not in bundle
    roles = {name: entry["role"] for name, entry in json.loads(bundle).items()}
    assert roles == dict.fromkeys(CANDIDATES, "candidate") | dict.fromkeys(WORKERS, "worker")


def test_workers_have_nothing_of_the_control_plane(site: Site) -> None:
    said = site.lab.run("n1", "ls /opt/lavalite/current/lib /opt/lavalite/current/bin /usr/sbin").stdout.split()
    assert "lavalite-lim" in said and not {"numpy", "fastapi", "grpc", "lavalite-mbatchd"} & set(said)


def test_a_job_of_an_unprivileged_user_runs_and_its_output_comes_back(site: Site) -> None:
    result = site.job("ctl1", PERSON, name="who", command=["id", "-un"], wait=True, output=True, timeout=60)
    assert result["stdout"] == f"{PERSON}\n"


def test_the_cluster_outlives_its_leader(site: Site) -> None:
    (first,) = leaders(site)
    before = until(lambda: site.status(first), "the scheduler answers")["epoch"]
    site.lab.power_off(first)
    try:
        (second,) = until(lambda: leaders(site), "another candidate leads")
        status = until(lambda: site.status(second), "its scheduler answers")
        assert status["epoch"] > before
        result = site.job(second, PERSON, name="after", command=["hostname"], wait=True, output=True, timeout=90)
        assert result["stdout"].strip() in WORKERS
    finally:
        site.lab.power_on(first)
    until(lambda: site.lab.run(first, "systemctl is-active lavalite-lim", check=False).returncode == 0, "LIM is back")
    until(lambda: site.status(first), "who came back knows who leads")
    assert leaders(site) == [second]
