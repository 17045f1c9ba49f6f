"""What check mode says is what happens: the same tasks, by host, role and name, and no other; and no secret is shown.

The tests share one cluster and run in their order: from nothing, then one change after another.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

SCENARIO = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
ROOT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
HERE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
LAB = os.environ["LAVALITE_LAB_INVENTORY"]
INVENTORIES = [LAB, ROOT / "extensions/molecule/everywhere.yml", SCENARIO / "inventory"]
HOSTS = ("ctl1", "ctl2", "n1")
NEXT = {"release_path": f"{os.environ['LAVALITE_RELEASES']}/next"}
ONE = {"mbatchd_api_listen": "0.0.0.0:6880"}
MANY = ONE | {
    "etcd_heartbeat_milli": 150,
    "lavalite_firewall": True,
    "lim_labels": {"rack": "r1"},
    "lim_supervises_mbatchd": False,
    "sbatchd_allow_root": True,
}
"""One of each role, and one that moves who starts the scheduler."""

Told = Counter[tuple[str, str, str]]
"""How often a task, by host, role and name, said that it changed something."""

pytestmark = pytest.mark.timeout(1200)
shown: list[str] = []
"""What was printed by all runs."""


def play(variables: dict[str, Any], *options: str, playbook: str = "site.yml") -> tuple[Told, list[str]]:
    """(who said `changed`, which tasks failed) of a run with --diff."""
    told = HERE / "told"
    told.unlink(missing_ok=True)
    command = ["ansible-playbook", "--diff", *options, str(ROOT / "playbooks" / playbook)]
    command += [f"--inventory={source}" for source in INVENTORIES]
    command += ["--extra-vars", json.dumps(variables)]
    environment = os.environ | {
        "ANSIBLE_CALLBACK_PLUGINS": str(SCENARIO / "callback"),
        "ANSIBLE_CALLBACKS_ENABLED": "told",
        "LAVALITE_TOLD": str(told),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    shown.append(done.stdout + done.stderr)
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert {line["host"] for line in lines} >= set(HOSTS)
    changed = Counter((line["host"], line["role"], line["task"]) for line in lines if line["changed"])
    return changed, [f"{line['host']}: {line['task']}" for line in lines if line["how"] in ("failed", "unreachable")]


def same(checked: Told, happened: Told) -> None:
    """Fails with each task that said something else."""
    never = [f"said in check mode, and did not change: {task} ×{n}" for task, n in (checked - happened).items()]
    unsaid = [f"changed, and was not said in check mode: {task} ×{n}" for task, n in (happened - checked).items()]
    assert not never + unsaid, "\n" + "\n".join(never + unsaid)


def check_then_do(variables: dict[str, Any], playbook: str = "site.yml") -> Told:
    checked, _ = play(variables, "--check", playbook=playbook)
    happened, _ = play(variables, playbook=playbook)
    same(checked, happened)
    return happened


def times(told: Told, name: str) -> int:
    return sum(count for (_, _, task), count in told.items() if task == name)


def on(host: str, line: str) -> str:
    return subprocess.run(
        ["ssh", "-F", str(Path(LAB).parent / "ssh_config"), host, "--", line],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def test_from_nothing_it_ends_without_failure_and_nothing_is_there() -> None:
    changed, failed = play({}, "--check")
    assert failed == [] and changed
    ours = "/etc/lavalite /opt/lavalite /var/lib/lavalite /usr/sbin/lavalite-*"
    for host in HOSTS:
        assert on(host, f"ls -d {ours} 2>/dev/null; :") == ""


def test_one_variable_of_a_cluster_that_was_deployed() -> None:
    play({})
    changed = check_then_do(ONE)
    assert {role for _, role, _ in changed} == {"lavalite.cluster.mbatchd"}
    assert times(changed, "The scheduler that runs is restarted") == 1


def test_one_variable_of_each_role() -> None:
    changed = check_then_do(MANY)
    roles = {role.rpartition(".")[2] for _, role, _ in changed}
    assert roles == {"etcd", "firewall", "lim", "mbatchd", "sbatchd"}


def test_another_release() -> None:
    changed = check_then_do(MANY | NEXT, "upgrade.yml")
    assert times(changed, "It is used from the next start on, and the way back is known") == len(HOSTS)
    assert times(changed, "Another candidate leads") == 1


def test_no_secret_was_shown() -> None:
    """Neither a private key, nor a line of any file that holds one."""
    said = "\n".join(shown)
    assert said.count("+++ after") > 10, "there were differences to see"
    for host in HOSTS:
        files = on(host, "find /etc/lavalite /var/lib/lavalite -type f -name '*.key' -exec cat {} +")
        lines = {line.strip() for line in files.splitlines() if len(line.strip()) >= 16 and "-----" not in line}
        assert lines, "there are secrets to look for"
        assert [line for line in lines if line in said] == []
    assert "PRIVATE KEY" not in said and "k4.secret" not in said
