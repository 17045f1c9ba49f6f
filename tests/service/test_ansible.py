"""inventories/local on real daemons: from nothing to logical hosts and back, without root and without systemd.

The tests share one cluster and run in their order.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
LINK = ROOT / ".ansible/collections/ansible_collections/lavalite/cluster"
BIN = Path(sys.executable).parent
PORTS = (7869, 6881, 6880)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.xdist_group("ansible")]


class Checkout:
    """A copy of inventories/local with a state and ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.inventory = folder / "inventories/local"
        self.state = folder / ".lavalite/local"
        shutil.copytree(ROOT / "inventories/local", self.inventory)
        hosts = self.inventory / "hosts.yml"
        text = hosts.read_text()
        for port, mine in zip(PORTS, free_ports(len(PORTS)), strict=True):
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{mine}")
        hosts.write_text(text)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LAVALITE_", "ANSIBLE_"))}
        self._environment = kept | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_HOME": str(folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
        }

    def run(self, program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / program), "-i", str(self.inventory), *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self._environment | environment, capture_output=True, text=True, timeout=200
        )

    def play(self, name: str, *arguments: str) -> str:
        """The output of a play that did not fail."""
        done = self.run("ansible-playbook", str(ROOT / f"playbooks/{name}.yml"), *arguments)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:] + self.logs()
        return done.stdout

    def module(self, module: str, /, *flags: str, on: str = "node1", **options: Any) -> dict[str, Any]:
        """A module's result, failed or not; what it says of a difference is under `said`.

        It speaks to the API on its socket, or to the LIM where that is named.
        """
        place = {} if "lim_socket" in options else {"unix_socket": str(self.state / "mbatchd/api.sock")}
        given = options | place
        done = self.run("ansible", on, "-m", f"lavalite.cluster.{module}", "-a", json.dumps(given), *flags)
        said, arrow, result = done.stdout.partition(" => ")
        if not arrow:
            raise AssertionError(done.stdout + done.stderr)
        found: dict[str, Any] = json.loads(result)
        return found | {"said": said}

    def graph(self) -> str:
        done = self.run("ansible-inventory", "--graph")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def logs(self) -> str:
        found = sorted(self.state.glob("*/*.log"))
        return "".join(f"\n== {path.name}\n{path.read_text(errors='replace')[-2500:]}" for path in found)


def changed(output: str) -> int:
    return sum(int(number) for number in re.findall(r"changed=(\d+)", output))


def changed_tasks(output: str) -> list[str]:
    """The tasks, in their order, that say `changed`."""
    found, task = [], ""
    for line in output.splitlines():
        if line.startswith("TASK ["):
            task = line.split("]")[0].removeprefix("TASK [")
        if line.startswith("changed:"):
            found.append(task)
    return found


def under(graph: str, group: str) -> list[str]:
    """The hosts that stand directly under a group of `ansible-inventory --graph`."""
    lines = iter(graph.splitlines())
    indent = next((line.index("@") for line in lines if line.strip("| -") == f"@{group}:"), None)
    if indent is None:
        return []
    found = []
    for line in lines:
        if line.startswith("  |" * ((indent + 1) // 3) + "--") and "@" not in line:
            found.append(line.split("--")[1])
        else:
            break
    return found


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    if not LINK.exists():
        LINK.parent.mkdir(parents=True, exist_ok=True)
        LINK.symlink_to("../../../..")
    folder = Path(tempfile.mkdtemp(prefix="lava-"))  # short, for sockets' sake
    made = Checkout(folder)
    yield made
    if (made.state / "lim").exists():
        made.play("stop")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def site(checkout: Checkout) -> str:
    """The cluster runs; what its first play said."""
    return checkout.play("site")


def test_before_anything_runs_logical_hosts_are_planned(checkout: Checkout) -> None:
    graph = checkout.graph()
    assert under(graph, "lavalite_pool_general") == ["demo"]
    assert under(graph, "lavalite_state_planned") == ["demo"]


def test_check_mode_from_nothing_fails_at_nothing_and_makes_nothing(checkout: Checkout) -> None:
    assert changed(checkout.play("site", "--check", "--diff")) > 0
    assert not (checkout.state / "lim").exists()


def test_one_playbook_and_logical_hosts_are_live(checkout: Checkout, site: str) -> None:
    assert changed(site) > 0
    graph = checkout.graph()
    assert under(graph, "lavalite_pool_general") == ["demo"]
    assert under(graph, "lavalite_state_composed") == ["demo"]
    assert under(graph, "lavalite_state_planned") == []


def test_a_second_run_changes_nothing(checkout: Checkout, site: str) -> None:
    assert changed_tasks(checkout.play("site")) == []
    assert changed_tasks(checkout.play("site", "--check")) == []


def test_what_ansible_runs_on_a_logical_host_runs_inside_its_limits(checkout: Checkout, site: str) -> None:
    done = checkout.run("ansible", "demo", "-m", "command", "-a", "nproc")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1"
    done = checkout.run("ansible", "demo", "-m", "shell", "-a", "echo $LAVALITE_HOST; ulimit -d")
    name, limit = done.stdout.splitlines()[-2:]
    assert name == "demo"
    assert int(limit) <= 512 * 1024


def test_facts_come_from_inside_as_well(checkout: Checkout, site: str) -> None:
    done = checkout.run("ansible", "demo", "-m", "setup", "-a", "gather_subset=!all,!min,env")
    assert '"LAVALITE_HOST": "demo"' in done.stdout, done.stdout + done.stderr


def test_the_demo_is_right_and_a_second_run_submits_nothing(checkout: Checkout, site: str) -> None:
    assert "Both say the same" in checkout.play("demo")
    assert changed_tasks(checkout.play("demo")) == []
    info = checkout.module("cluster_info", gather=[])
    assert info["status"]["jobs"].get("succeeded") == 2


def test_check_and_real_run_change_the_same(checkout: Checkout, site: str) -> None:
    with_change = ("--extra-vars", json.dumps({"lim_labels": {"rack": "r1"}}))
    foretold = changed_tasks(checkout.play("site", "--check", *with_change))
    assert len(foretold) == 2  # the configuration, and LIM, which is restarted
    assert changed_tasks(checkout.play("site", *with_change)) == foretold
    assert changed_tasks(checkout.play("site", *with_change)) == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the only core belongs to the host demo")
def test_a_logical_host_comes_and_goes_by_module(checkout: Checkout, site: str) -> None:
    wanted = {"name": "extra", "spec": {"cpu": 0.1, "memory": "64MiB"}}
    foretold = checkout.module("logical_host", "--check", "--diff", **wanted)
    assert foretold["changed"] is True, foretold
    assert '+        "memory": "64MiB"' in foretold["said"]
    assert "extra" not in checkout.graph()
    made = checkout.module("logical_host", **wanted)
    assert (made["changed"], made["hosts"][0]["state"]) == (True, "composed"), made
    assert checkout.module("logical_host", **wanted)["changed"] is False
    assert "extra" in under(checkout.graph(), "lavalite_state_composed")
    gone = {"name": "extra", "state": "absent"}
    assert checkout.module("logical_host", **gone)["changed"] is True
    assert checkout.module("logical_host", **gone)["changed"] is False
    assert "extra" not in checkout.graph()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the only core belongs to the host demo")
def test_a_logical_host_is_reserved_and_composed_later(checkout: Checkout, site: str) -> None:
    wanted = {"name": "later", "spec": {"cpu": 0.1, "memory": "64MiB"}}
    assert checkout.module("logical_host", "--check", state="reserved", **wanted)["changed"] is True
    held = checkout.module("logical_host", state="reserved", reserve_seconds=600, **wanted)
    assert (held["changed"], held["hosts"][0]["state"]) == (True, "reserved"), held
    again = checkout.module("logical_host", state="reserved", **wanted)
    assert (again["changed"], again["hosts"][0]["state"]) == (False, "reserved"), again
    assert again["hosts"][0]["reserved_until"] > held["hosts"][0]["reserved_until"] + 600, "from the last task on"
    assert checkout.module("logical_host", "--check", **wanted)["changed"] is True
    made = checkout.module("logical_host", **wanted)
    assert (made["changed"], made["hosts"][0]["state"]) == (True, "composed"), made
    kept = checkout.module("logical_host", state="reserved", **wanted)
    assert (kept["changed"], kept["hosts"][0]["state"]) == (False, "composed"), "what is composed stays so"
    checkout.module("logical_host", name="later", state="absent")


def test_queues_and_pools_by_module(checkout: Checkout, site: str) -> None:
    queue = {"name": "night", "spec": {"priority": 10}}
    assert checkout.module("queue", **queue)["changed"] is True
    assert checkout.module("queue", **queue)["changed"] is False
    pool = {"name": "licences", "spec": {"floating": {"matlab": 2}}}
    assert checkout.module("pool", **pool)["changed"] is True
    info = checkout.module("cluster_info")
    assert "night" in [queue["name"] for queue in info["queues"]]
    assert "licences" in [pool["name"] for pool in info["pools"]]
    assert checkout.module("queue", name="night", state="absent")["changed"] is True
    assert checkout.module("pool", name="licences", state="absent")["changed"] is True


def test_a_bad_document_changes_nothing_and_names_every_fault(checkout: Checkout, site: str) -> None:
    text = (checkout.inventory / "pools.yml").read_text()
    bad = text.replace("demo: {cpu: 1", "demo: {cpu: lots").replace("first-fit", "first-fitt")
    failed = checkout.module("definition", content=bad, file="x.yml")
    assert re.search(r"^x\.yml:\d+: logical_hosts\.demo\.cpu: ", failed["msg"], re.MULTILINE), failed
    assert re.search(r"^x\.yml:\d+: queues\.short\.policy: ", failed["msg"], re.MULTILINE)
    assert checkout.module("definition", content=text)["changed"] is False


def test_a_job_by_module_is_submitted_once_and_tells_what_it_wrote(checkout: Checkout, site: str) -> None:
    options = {
        "name": "hello",
        "command": ["/bin/echo", "hello"],
        "cpu": "0.1",
        "host": "demo",
        "wait": True,
        "output": True,
    }
    first = checkout.module("job", **options)
    assert (first["changed"], first["stdout"]) == (True, "hello\n"), first
    again = checkout.module("job", **options)
    assert (again["changed"], again["id"]) == (False, first["id"])
    options |= {"name": "bad", "command": ["/bin/sh", "-c", "echo no >&2; exit 3"]}
    bad = checkout.module("job", **options)
    assert "exit code 3" in bad["msg"]
    assert "It wrote: no" in bad["msg"]


def test_a_job_that_is_cancelled(checkout: Checkout, site: str) -> None:
    submitted = checkout.module("job", name="long", command=["/bin/sleep", "600"], cpu="0.1", host="demo")
    assert submitted["changed"] is True
    assert checkout.module("job", name="long", state="cancelled")["cancelled"] == [submitted["id"]]


def test_a_node_is_drained_and_free_of_work_by_a_deadline(checkout: Checkout, site: str) -> None:
    job = checkout.module("job", name="stays", command=["/bin/sleep", "600"], cpu="0.1", rerunnable=True)
    drained = {"name": "node1", "state": "drained", "reason": "new disk"}
    foretold = checkout.module("node", "--check", "--diff", **drained)
    assert foretold["changed"] is True and foretold["node"]["state"] == "drained"
    assert '+        "reason": "new disk"' in foretold["said"]
    assert checkout.module("node_info", name=["node1"])["nodes"][0]["drain"] is None
    assert checkout.module("node", **drained)["changed"] is True
    assert checkout.module("node", **drained)["changed"] is False
    late = checkout.module("node", wait=True, timeout=1, **drained)
    assert "node node1 still has 1 tasks after 1 s" in late["msg"], late
    free = checkout.module("node", wait=True, timeout=60, deadline="1s", **drained)
    assert (free["changed"], free["node"]["tasks"]) == (True, 0), free
    found = checkout.module("job_info", id=[job["id"]], tasks=True)
    assert (found["jobs"][0]["state"], found["tasks"][0]["reason"][:8]) == ("pending", "drained:"), found
    assert checkout.module("node_info", state=["drained"])["nodes"][0]["drain"]["reason"] == "new disk"
    assert checkout.module("node", name="node1", state="active")["changed"] is True
    assert checkout.module("node", name="node1", state="active")["changed"] is False
    assert checkout.module("job", name="stays", state="cancelled")["cancelled"] == [job["id"]]
    assert "there is no node n99" in checkout.module("node", name="n99", state="drained")["msg"]


def test_labels_of_an_operator_are_given_selected_by_and_taken_away(checkout: Checkout, site: str) -> None:
    labels = {"name": "node1", "labels": {"row": ["a", "b"], "disk": "new"}}
    assert checkout.module("node", "--check", **labels)["changed"] is True
    assert checkout.module("node_info", select={"row": "b"})["nodes"] == []
    assert checkout.module("node", **labels)["changed"] is True
    assert checkout.module("node", **labels)["changed"] is False
    assert [node["name"] for node in checkout.module("node_info", select={"row": "b"})["nodes"]] == ["node1"]
    changed = checkout.module("node", name="node1", labels={"disk": None}, purge_labels=True)
    assert changed["node"]["operator_labels"] == {}
    refused = checkout.module("node", name="node1", labels={"group": "x"})
    assert refused["msg"].startswith("labels.group: a node's groups are those of the inventory. Put"), refused


def test_what_there_is_is_listed_by_module(checkout: Checkout, site: str) -> None:
    pools = checkout.module("pool_info", name=["general", "none"])
    assert ([pool["nodes"] for pool in pools["pools"]], pools["more"]) == ([["node1"]], False)
    hosts = checkout.module("logical_host_info", state=["composed"])
    assert [host["name"] for host in hosts["hosts"]] == ["demo"]
    assert checkout.module("logical_host_info", name=["nobody"])["hosts"] == []
    for number in range(3):
        checkout.module("job", name="listed", command=["/bin/true", str(number)], cpu="0.1", wait=True)
    jobs = checkout.module("job_info", name="listed", state=["succeeded"], limit=2)
    assert (len(jobs["jobs"]), jobs["more"]) == (2, True)


def test_events_are_read_on_from_where_an_earlier_run_ended(checkout: Checkout, site: str) -> None:
    start = checkout.module("event_info", since="now")
    assert start["events"] == []
    job = checkout.module("job", name="heard", command=["/bin/true"], cpu="0.1", wait=True)["id"]
    asked = {"since": start["cursor"], "kind": ["job"], "name": str(job)}
    heard = checkout.module("event_info", timeout=30, limit=2, **asked)
    assert len(heard["events"]) == 2 and heard["events"][0]["state"] == "pending", heard
    assert heard["missed"] is False
    states = [event["state"] for event in checkout.module("event_info", **asked)["events"]]
    assert states[-1] == "succeeded"
    assert "is no cursor" in checkout.module("event_info", since="yesterday")["msg"]


def test_a_token_is_written_for_its_owner_alone_and_is_good_for_the_api(checkout: Checkout, site: str) -> None:
    path = checkout.state / "token"
    wanted = {"path": str(path), "lim_socket": str(checkout.state / "lim/lim.sock")}
    foretold = checkout.module("token", "--check", "--diff", **wanted)
    assert (foretold["changed"], path.exists()) == (True, False), foretold
    made = checkout.module("token", "--diff", "-vvv", **wanted)
    assert made["changed"] is True and path.stat().st_mode & 0o777 == 0o600, made
    assert time.time() < made["expires_at"] <= time.time() + 300
    text = path.read_text().strip()
    assert text.startswith("v4.public.") and text not in json.dumps(made)
    again = checkout.module("token", **wanted)
    assert (again["changed"], again["expires_at"]) == (False, made["expires_at"]), again
    path.chmod(0o644)
    assert checkout.module("token", "--check", **wanted)["changed"] is True
    assert checkout.module("token", **wanted)["changed"] is True
    assert path.stat().st_mode & 0o777 == 0o600
    assert checkout.module("token", valid_for=301, **wanted)["changed"] is True
    url = re.findall(r"http://127\.0\.0\.1:\d+", (checkout.state / "lim/lim.conf").read_text())
    found = checkout.module("node_info", api=url, token_path=str(path), lim_socket="", connect_timeout=10)
    assert [node["name"] for node in found["nodes"]] == ["node1"], found
    nowhere = checkout.module("token", path="/nowhere/token", lim_socket=wanted["lim_socket"])
    assert nowhere["msg"].startswith("path: /nowhere/token: No such file or directory. Name a file"), nowhere
    silent = checkout.module("token", path=str(path), lim_socket="/nowhere/lim.sock")
    assert silent["msg"].startswith("lim_socket: /nowhere/lim.sock: No such file"), silent


def test_a_play_without_pools_is_refused_with_the_way_out(checkout: Checkout, site: str) -> None:
    command = [str(BIN / "ansible-playbook"), "-i", str(checkout.inventory / "hosts.yml"), "playbooks/site.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "No pools.yml was read" in done.stdout
