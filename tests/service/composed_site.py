"""A cluster of three workers, of which each has something else to give, and what an operator does with it.

    n1      a machine of its own (QEMU): CPU, and a little memory. Here hosts are anchored
    mem1    a container: memory
    disk1   a container: storage

They are deployed as the roles do it, by deployed.py. The leader is on the test's side, and so is Ansible, which
reaches the API by its Unix socket and the workers by ssh.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from cluster import CLUSTER
from deployed import FINAL, Cluster
from lab import Lab

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ANCHOR, MEMORY, DISK = "n1", "mem1", "disk1"
NODES = (ANCHOR, MEMORY, DISK)
UID, PERSON = 5000, "ada"
HOST = "analytics"
MIB, GIB = 1024**2, 1024**3
STORAGE_PATH = "/srv/lavalite"
GIVES = {ANCHOR: ["cpu", "memory"], MEMORY: ["memory"], DISK: ["storage"]}
LINK_BITS_PER_SECOND = 1_000_000_000

# Each prints a number, which is the same before a host was composed and after it was released.
TRACES_EVERYWHERE = {
    "programs that export": "pgrep -c nbdkit; true",
    "sockets that listen": "ss -Hltn | wc -l",
    "HTB classes": "for each in /sys/class/net/*; do tc class show dev ${each##*/}; done 2>/dev/null | wc -l",
    "nftables": "nft list ruleset | wc -l",
    "units": "systemctl list-units --plain --no-legend --type=service,mount,swap 'lavalite*' | wc -l",
    "mounts": "grep -c lavalite /proc/self/mounts; true",
    "files": f"find {STORAGE_PATH} -type f 2>/dev/null | wc -l",
}
# A container sees those of the whole machine.
TRACES_OF_A_KERNEL = {
    "loop devices": "ls -d /sys/block/loop*/backing_file 2>/dev/null | wc -l",
    "NBD devices": "ls -d /sys/block/nbd*/pid 2>/dev/null | wc -l",
    "mapped devices": "ls /dev/mapper | grep -c lavalite; true",
    "swap": "tail -n +2 /proc/swaps | wc -l",
}


class ComposedSite:
    """`variables` of the roles, by worker; where there are none, those that give the workers what they need."""

    def __init__(self, folder: Path, lab: Lab, variables: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.lab, self.folder = lab, folder
        for node in NODES:
            lab.run(node, f"id -u {PERSON} >/dev/null 2>&1 || useradd --uid {UID} --create-home {PERSON}")
            lab.run(node, f"mkdir -p {STORAGE_PATH}")
        of_each = {
            node: {
                "lim_labels": {"rack": "r1", "gives": GIVES[node]},
                "lim_storage_path": STORAGE_PATH,
                **(variables[node] if variables is not None else settings(lab, node)),
            }
            for node in NODES
        }
        (folder / "cluster").mkdir()
        self.cluster = Cluster(folder / "cluster", lab, *NODES, uid=UID, variables=of_each)
        self.inventory = folder / "inventory"
        lab.write_inventory(self.inventory / "hosts.json", {"lavalite_nodes": NODES})
        self._here = folder / "here.ini"
        self._here.write_text(f"here ansible_connection=local ansible_python_interpreter={sys.executable}\n")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LAVALITE_", "ANSIBLE_"))}
        self._environment = kept | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_HOME": str(folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_TIMEOUT": "60",
            "COLUMNS": "200",
            "LAVALITE_API": f"unix:{self.cluster.api_socket}",
        }

    @contextlib.contextmanager
    def running(self) -> Iterator[ComposedSite]:
        with self.cluster.running():
            yield self

    # --- what an operator types

    def run(self, program: str, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / program), *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=seconds
        )

    def lavalite(self, *arguments: str) -> str:
        """What `lavalite …` prints."""
        done = self.run("lavalite", *arguments)
        assert done.returncode == 0, f"lavalite {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def write_pools(self, **hosts: dict[str, Any]) -> Path:
        """pools.yml with these logical hosts."""
        document = POOLS | {"unix_socket": self.cluster.api_socket, "logical_hosts": hosts}
        file = self.inventory / "pools.yml"
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        return file

    def apply(self, *arguments: str, **hosts: dict[str, Any]) -> str:
        """Ansible brings the cluster to a pools.yml with these hosts alone; what the play said."""
        done = self._applied(*arguments, **hosts)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:] + self.journals()
        return done.stdout

    def refused(self, **hosts: dict[str, Any]) -> str:
        """What the play said that could not bring it to these."""
        done = self._applied("-e", "seconds=20", **hosts)
        assert done.returncode == 2, done.stdout[-4000:] + done.stderr[-2000:]
        return done.stdout + done.stderr

    def _applied(self, *arguments: str, **hosts: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        self.write_pools(**hosts)
        play = self.folder / "apply.yml"
        play.write_text(yaml.safe_dump(APPLY))
        return self.run("ansible-playbook", "-i", str(self.inventory), str(play), "-e",
                        f"lavalite_api_socket={self.cluster.api_socket}", *arguments, seconds=900)  # fmt: skip

    def module(self, module: str, /, *, check: bool = True, **options: Any) -> dict[str, Any]:
        """The result of a module of ours, run here; of one that failed too, unless `check`."""
        given = json.dumps(options | {"unix_socket": self.cluster.api_socket})
        done = self.run("ansible", "-i", str(self._here), "here", "-m", f"lavalite.cluster.{module}", "-a", given)
        head, _, result = done.stdout.partition(" => ")
        assert not check or "FAILED" not in head, done.stdout[-4000:] + done.stderr[-2000:] + self.journals()
        found: dict[str, Any] = json.loads(result)
        return found

    def playbook(self, name: str, *arguments: str) -> str:
        """A playbook of the collection, on this inventory; what it said."""
        done = self.run("ansible-playbook", "-i", str(self.inventory), f"playbooks/{name}.yml", *arguments)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:] + self.journals()
        return done.stdout

    def on_host(self, line: str) -> str:
        """What a shell prints that Ansible runs on the logical host."""
        words = ["-i", str(self.inventory), HOST, "-m", "ansible.builtin.shell", "-a", line]
        done = self.run("ansible", *words)
        assert done.returncode == 0, done.stdout + done.stderr + self.journals()
        return done.stdout.partition(">>\n")[2]

    def hostvars(self) -> dict[str, Any]:
        """What `ansible-inventory` knows of the logical host."""
        done = self.run("ansible-inventory", "-i", str(self.inventory), "--list")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)["_meta"]["hostvars"][HOST]
        return found

    # --- what there is

    def host(self) -> dict[str, Any] | None:
        """The logical host as the API tells it; None where there is none."""
        with self.cluster.client() as client:
            return next((each.model_dump(mode="json") for each in client.hosts() if each.name == HOST), None)

    def end_jobs(self) -> None:
        """Whatever still waits or runs is cancelled, and has ended."""
        with self.cluster.client() as client:
            left = [job.id for job in client.jobs() if job.state not in FINAL]
        for job in left:
            self.cluster.cancel(job)
            self.cluster.end(job)

    def offered(self, node: str, kind: str) -> int:
        with self.cluster.client() as client:
            (found,) = [each for each in client.nodes() if each.name == node]
            return found.resources[kind].capacity if kind in found.resources else 0

    def traces(self, *, kernel: bool = True) -> dict[str, int]:
        """What hosts leave behind, counted on all workers; `kernel`: the anchor has one of its own."""
        counts: dict[str, int] = {}
        for node in NODES:
            looks = TRACES_EVERYWHERE | (TRACES_OF_A_KERNEL if kernel and node == ANCHOR else {})
            line = "; ".join(f"( {command} )" for command in looks.values())
            numbers = self.lab.run(node, line).stdout.split()
            assert len(numbers) == len(looks), (node, numbers)
            counts |= {f"{what} of {node}": int(number) for what, number in zip(looks, numbers, strict=True)}
        return counts

    def journals(self) -> str:
        line = "journalctl --no-pager -q -n 15 -u 'lavalite*' -o cat; systemctl --failed --no-legend"
        said = [f"\n== {node}\n{self.lab.run(node, line, check=False).stdout[-3000:]}" for node in NODES]
        return "".join([*said, "\n== the scheduler\n", self.cluster.leader.scheduler_log[-3000:]])


def settings(lab: Lab, node: str) -> dict[str, Any]:
    """What the role sbatchd is told of a node that gives and takes parts."""
    return {"sbatchd_storage_path": STORAGE_PATH, "sbatchd_fabric_address": lab.address(node)}


POOLS: dict[str, Any] = {
    "plugin": "lavalite.cluster.pools",
    "cluster": CLUSTER,
    "mode": "live",
    "timeout": "20s",
    "links": [{"from": {"rack": "r1"}, "to": "r1", "bandwidth": "1Gbit/s"}],
    "pools": {
        "cores": {"nodes": {"gives": "cpu"}, "kinds": ["cpu"], "default": True},
        "ram": {"nodes": {"gives": "memory"}, "kinds": ["memory"], "default": True},
        "flash": {"nodes": {"gives": "storage"}, "kinds": ["storage"], "default": True},
    },
    "queues": {"normal": {"priority": 30, "default": True}},
}
APPLY = [
    {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}"},
        "tasks": [
            {
                "name": "The document is applied",
                "lavalite.cluster.definition": {
                    "content": "{{ lookup('ansible.builtin.file', lavalite_pools_source, rstrip=false) }}",
                    "file": "{{ lavalite_pools_source }}",
                    "unix_socket": "{{ lavalite_api_socket }}",
                    "purge": True,
                    "wait": True,
                    "timeout": "{{ seconds | default(240) }}",
                },
            }
        ],
    }
]
