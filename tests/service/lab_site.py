"""A site of five hosts of the lab, which site.yml deploys: its inventory, and what an operator does with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from lab import Lab

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CANDIDATES, WORKERS = ["ctl1", "ctl2", "ctl3"], ["n1", "n2"]
SOCKETS = {"unix_socket": "/run/lavalite/api.sock", "lim_socket": "/run/lavalite/lim.sock"}
PERSON = "alice"


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)
    return found


class Site:
    """An inventory for the lab's hosts, and what an operator does with it."""

    def __init__(self, lab: Lab, folder: Path, variables: dict[str, Any] | None = None) -> None:
        """`lab` has CANDIDATES and WORKERS, on which PERSON gets an account; `variables` are of all hosts, beside
        VARIABLES."""
        self.lab, self.folder = lab, folder / "inventory"
        for host in lab.hosts:
            lab.run(host, f"id -u {PERSON} >/dev/null 2>&1 || useradd --create-home {PERSON}")
        # What is deployed stays the same while these tests run, also where somebody edits the checkout.
        self.checkout = folder / "checkout"
        copied = self.checkout / "src/lavalite"
        shutil.copytree(ROOT / "src/lavalite", copied, ignore=shutil.ignore_patterns("__pycache__"))
        groups = {
            "lavalite_candidates": CANDIDATES,
            "lavalite_etcd": CANDIDATES,
            "lavalite_nodes": [*CANDIDATES, *WORKERS],
            "compute": WORKERS,
        }
        lab.write_inventory(self.folder / "hosts.json", groups)
        (self.folder / "group_vars").mkdir()
        of_all = VARIABLES | {"release_path": str(self.checkout)} | (variables or {})
        (self.folder / "group_vars/all.yml").write_text(yaml.safe_dump(of_all))
        (self.folder / "pools.yml").write_text(yaml.safe_dump(POOLS))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LAVALITE_", "ANSIBLE_"))}
        self._environment = kept | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_HOME": str(folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
        }

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / program), "-i", str(self.folder), *arguments]
        return subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=600)

    def play(self, *arguments: str, playbook: str = "playbooks/site.yml") -> str:
        """The output of a playbook that did not fail."""
        done = self.run("ansible-playbook", playbook, *arguments)
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

    def leaders(self) -> list[str]:
        """Where a scheduler runs, of the hosts that are on."""
        return [
            name
            for name in CANDIDATES
            if self.lab.hosts[name].on
            and self.lab.run(name, "systemctl is-active -q lavalite-mbatchd", check=False).returncode == 0
        ]

    def journals(self) -> str:
        said = []
        for name, host in self.lab.hosts.items():
            if host.on:
                line = "journalctl --no-pager -q -n 12 -u 'lavalite-*' -o cat; systemctl --failed --no-legend"
                said.append(f"\n== {name}\n{self.lab.run(name, line, check=False).stdout[-3000:]}")
        return "".join(said)


VARIABLES = {"lavalite_tls": True}
POOLS = {
    "plugin": "lavalite.cluster.pools",
    "cluster": "lab",
    "mode": "plan",
    "capacity": {name: {"cpu": 1, "memory": "1GiB"} for name in [*CANDIDATES, *WORKERS]},
    "pools": {"general": {"nodes": {"group": "compute"}, "kinds": ["cpu", "memory"], "default": True}},
    "logical_hosts": {},
    "queues": {"normal": {"priority": 30, "default": True}},
}
