"""The inventory plugin with many logical hosts, live: side by side with itself without variables, and with Ansible's
own YAML inventory of the same hosts.

python bench/inventory.py [--hosts 10000] [--json]

The scheduler is a real one. Times are by the wall clock, the best of --rounds, where a machine has nothing else to
do; seconds of CPU are noted beside them, since they hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cluster_of import CLUSTER, ROOT, ClusterOf
from figures import Figure, at_most, noted, report

ANSIBLE = Path(sys.executable).parent / "ansible-inventory"
POOLS = """\
plugin: lavalite.cluster.pools
cluster: {cluster}
mode: live
unix_socket: {socket}
timeout: 60s
pools:
  general: {{nodes: "node*", kinds: [cpu, memory], default: true}}
"""
PARSE = Path(__file__).with_name("inventory_parse.py")
BARE = Path(__file__).with_name("inventory_bare.py")
COMMAND_SECONDS = 1800


@dataclass(slots=True, frozen=True)
class Took:
    """Seconds by the wall clock and of CPU (the command's own, not the scheduler's), and what it printed."""

    wall: float
    cpu: float
    output: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description="The inventory plugin with many logical hosts.")
    parser.add_argument("--hosts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts; YAML is read once")
    parser.add_argument("--json", action="store_true", help="the last line is a list of the figures")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lava-") as folder:
        figures = asyncio.run(_measured(Path(folder), asked.hosts, asked.rounds))
    return report(figures, as_json=asked.json)


async def _measured(folder: Path, hosts: int, rounds: int) -> list[Figure]:
    cluster = ClusterOf(folder, hosts)
    began = time.monotonic()
    async with cluster.running():
        served = time.monotonic() - began
        live = _sources(folder / "live", cluster)
        parse = await _best(rounds, str(PARSE), live)
        cached = await _best(rounds, str(PARSE), live, **_cache(folder))
        graph = await _best(rounds, str(ANSIBLE), "-i", live, "--graph")
        listed = await _best(rounds, str(ANSIBLE), "-i", live, "--list")
        bare = await _best(rounds, str(BARE), "-i", live, "--list")
        exported = await _timed(str(ANSIBLE), "-i", live, "--list", "--yaml")
    _demand_all(hosts, listed.output, bare.output)
    own = folder / "own.yml"
    own.write_text(exported.output)
    yaml = await _timed(str(ANSIBLE), "-i", str(own), "--list", ANSIBLE_INVENTORY_ENABLED="ansible.builtin.yaml")
    _demand_all(hosts, yaml.output)
    plain, theirs = f"no variables: {bare.wall:.2f} s", f"Ansible's YAML: {yaml.wall:.2f} s"
    told = json.loads(parse.output)
    return [
        noted("hosts", hosts, ""),
        noted("scheduler started, hosts entered", served, "s"),
        at_most("parse", told["wall"], "s", 1.0),
        noted("parse, CPU of the plugin", told["cpu"], "s"),
        noted("parse, from the cache", json.loads(cached.output)["wall"], "s", f"not cached: {told['wall']:.2f} s"),
        at_most("--graph", graph.wall, "s", 2.0),
        noted("--graph, CPU", graph.cpu, "s"),
        noted("--list", listed.wall, "s"),
        noted("--list, CPU", listed.cpu, "s", f"no variables: {bare.cpu:.2f} s, Ansible's YAML: {yaml.cpu:.2f} s"),
        at_most("--list / no variables", listed.wall / bare.wall, "", 2.2, plain),
        at_most("--list / Ansible's YAML", listed.wall / yaml.wall, "", 1 / 3, theirs),
        noted("--list / Ansible's YAML, CPU", listed.cpu / yaml.cpu, ""),
    ]


def _sources(folder: Path, cluster: ClusterOf) -> str:
    """An inventory as an operator has it: the nodes, and pools.yml."""
    folder.mkdir()
    nodes = {
        node: {"ansible_host": f"198.18.{i // 250}.{i % 250 + 1}", "ansible_user": "op", "ansible_port": 22}
        for i, node in enumerate(cluster.nodes)
    }
    (folder / "hosts.yml").write_text(json.dumps({"lavalite_nodes": {"hosts": nodes}}))
    (folder / "pools.yml").write_text(POOLS.format(cluster=CLUSTER, socket=cluster.socket))
    return str(folder)


def _cache(folder: Path) -> dict[str, str]:
    return {
        "ANSIBLE_INVENTORY_CACHE": "True",
        "ANSIBLE_INVENTORY_CACHE_PLUGIN": "ansible.builtin.jsonfile",
        "ANSIBLE_INVENTORY_CACHE_CONNECTION": str(folder / "cache"),
    }


async def _best(rounds: int, *words: str, **variables: str) -> Took:
    """Each number is the best of all rounds; the output is the last one's."""
    took = [await _timed(*words, **variables) for _ in range(rounds)]
    best = min(took, key=lambda one: one.wall)
    return Took(best.wall, min(one.cpu for one in took), best.output)


async def _timed(*words: str, **variables: str) -> Took:
    """One command, in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "LAVALITE_"))}
    environment |= {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **variables}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, limit=2**30
    )
    async with asyncio.timeout(COMMAND_SECONDS):
        output, _ = await process.communicate()
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.returncode == 0, f"{words} failed with {process.returncode}"
    return Took(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, output.decode())


def _demand_all(hosts: int, *outputs: str) -> None:
    """Nothing is quick that leaves hosts out."""
    for output in outputs:
        found = sum(name.startswith("web-") for name in json.loads(output)["lavalite_hosts"]["hosts"])
        assert found == hosts, f"{found} of {hosts} hosts are listed"


if __name__ == "__main__":
    raise SystemExit(main())
