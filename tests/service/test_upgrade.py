"""playbooks/upgrade.yml while work runs: nothing is lost, nothing runs twice, and leadership moves once.

Five hosts, as in test_site.py. The tests share one cluster and run in their order: release N, N+1, and back.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from lab import Lab
from lab_site import CANDIDATES, PERSON, WORKERS, Site, until

TASKS = 100
HOLDING = 40
"""Tasks of an array that run from before the upgrade until after it. The others go through the rest of the places."""
TASK = """
echo "$LAVALITE_TASK $LAVALITE_ATTEMPT" >> {folder}/lines
if [ "$LAVALITE_TASK" -le {holding} ]; then
    until [ -e {folder}/go ]; do sleep 1; done
else
    sleep 4
fi
echo "$LAVALITE_TASK" >> {folder}/ends
"""
PLAYBOOK = "playbooks/upgrade.yml"

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.xdist_group("upgrade")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Lab([*CANDIDATES, *WORKERS]) as lab:
        made = Site(lab, tmp_path_factory.mktemp("upgrade"))
        made.play()
        yield made


class Array:
    """An array of tasks that write a line when they begin and one when they end, on the node that they run on."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.folder = site, f"/var/tmp/{name}"
        for node in WORKERS:
            site.lab.run(node, f"install -d -m 1777 {self.folder}")
        script = TASK.format(folder=self.folder, holding=HOLDING)
        command = ["/bin/sh", "-c", script]
        asked = {"name": name, "command": command, "array": f"1-{TASKS}", "cpu": "0.04", "memory": "1MiB"}
        self.job: int = site.job("ctl1", PERSON, **asked)["id"]

    def lines(self, what: str) -> list[str]:
        return [
            line
            for node in WORKERS
            for line in self.site.lab.run(node, f"cat {self.folder}/{what}", check=False).stdout.splitlines()
        ]

    def tasks(self) -> list[dict[str, Any]]:
        asked = f"/opt/lavalite/current/bin/lavalite tasks {self.job} --output json"
        found: list[dict[str, Any]] = json.loads(self.site.lab.run("ctl1", asked).stdout)
        return found

    def states(self) -> Counter[str]:
        return Counter(task["state"] for task in self.tasks())

    def held(self) -> set[str]:
        """The units of those that run until they are let go, by node. Others run beside them, and others wait."""
        wanted = {f"lavalite-{self.job}.{index}.1.service" for index in range(1, HOLDING + 1)}

        def running() -> set[str]:
            return {found for found in attempts(self.site) if found.split()[1] in wanted}

        until(lambda: len(running()) == HOLDING, "the first tasks run", 120)
        return running()

    def let_go(self) -> None:
        for node in WORKERS:
            self.site.lab.run(node, f"touch {self.folder}/go")


def leaderships(site: Site) -> int:
    """How often a LIM of the cluster began to lead, ever."""
    said = [site.lab.run(name, "journalctl --no-pager -q -u lavalite-lim -o cat").stdout for name in CANDIDATES]
    return "".join(said).count('"this LIM leads"')


def releases(site: Site) -> set[str]:
    """The versions that the nodes use."""
    links = [site.lab.run(host, "readlink /opt/lavalite/current").stdout for host in site.lab.hosts]
    return {re.sub(r"^releases/(.*)-[a-z]+-py\d+$", r"\1", link.strip()) for link in links}


def behind(site: Site) -> set[str]:
    """What runs out of another release than its node uses."""
    done = site.run("ansible", "lavalite_nodes", "-m", "lavalite.cluster.release_info")
    assert done.returncode == 0, done.stdout + done.stderr
    said = [
        json.loads(text) for text in re.findall(r"^\{$.*?^\}$", done.stdout.replace(" => {", " =>\n{"), re.M | re.S)
    ]
    assert len(said) == len(site.lab.hosts)
    return {program for one in said for program in one["behind"]}


def next_release(site: Site) -> None:
    """The checkout that is deployed becomes another version."""
    file = site.checkout / "src/lavalite/__init__.py"
    file.write_text(file.read_text().replace('__version__ = "0.1.0"', '__version__ = "0.1.1"'))


def changes(output: str) -> dict[str, int]:
    """How many tasks changed something, by host."""
    return {host: int(count) for host, count in re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+)", output, re.M)}


def attempts(site: Site) -> set[str]:
    """The transient units of attempts that run, by node."""
    listing = "systemctl list-units --plain --no-legend --state=running 'lavalite-*.*.*.service' | cut -d' ' -f1"
    return {f"{node} {unit}" for node in WORKERS for unit in site.lab.run(node, listing).stdout.split()}


def still_running(array: Array, held: set[str]) -> None:
    """What ran before an upgrade runs after it, as the same units."""
    gone = sorted(held - attempts(array.site))
    told = []
    for node, unit in (found.split() for found in gone):
        line = f"journalctl --no-pager -q -o short-precise -u {unit} | tail -n 20; grep -h . {array.folder}/ends"
        told.append(f"{node} {unit}\n{array.site.lab.run(node, line, check=False).stdout}")
        told += [str(task) for task in array.tasks() if str(task["index"]) == unit.split(".")[1]]
    assert not gone, "\n".join(told) + array.site.journals()


def nothing_lost_nothing_twice(array: Array) -> None:
    """Also what ran all the time ends now. Each task ran once, to its end, as its first attempt."""
    array.let_go()
    until(lambda: array.states()["succeeded"] == TASKS, "all tasks end well", 240)
    begun = array.lines("lines")
    assert sorted(int(line.split()[0]) for line in begun) == list(range(1, TASKS + 1))
    assert {line.split()[1] for line in begun} == {"1"}
    assert sorted(map(int, array.lines("ends"))) == list(range(1, TASKS + 1))
    assert {task["attempt"] for task in array.tasks()} == {1}


def test_from_one_release_to_the_next_while_work_runs(site: Site) -> None:
    (before,) = releases(site)
    next_release(site)
    array = Array(site, "up")
    held, led = array.held(), leaderships(site)
    fault = "/etc/systemd/system/lavalite-sbatchd.service.d"
    site.lab.run("n2", f"mkdir {fault}; echo '[Service]\nExecStartPre=/bin/false' > {fault}/fault.conf")
    site.lab.run("n2", "systemctl daemon-reload")
    stopped = site.run("ansible-playbook", PLAYBOOK)
    assert stopped.returncode != 0
    assert "Done: ctl1, ctl2, ctl3, n1. To do: n2. Mend n2 and run the same command again" in stopped.stdout
    assert f"To go back instead: ansible-playbook {PLAYBOOK} -e lavalite_release={before}" in stopped.stdout
    site.lab.run("n2", f"rm -r {fault}; systemctl daemon-reload")
    said = site.play(playbook=PLAYBOOK)
    assert {host for host, count in changes(said).items() if count} <= {"n2"}, said
    assert leaderships(site) - led == 1
    still_running(array, held)
    (after,) = releases(site)
    assert after.startswith("0.1.1+") and not behind(site)
    assert f"{after} is what all use. To go back: ansible-playbook {PLAYBOOK} -e lavalite_release={before}" in said
    nothing_lost_nothing_twice(array)


def test_back_to_the_release_before_while_work_runs(site: Site) -> None:
    array = Array(site, "back")
    held, led = array.held(), leaderships(site)
    site.play("-e", "lavalite_release=previous", playbook=PLAYBOOK)
    assert leaderships(site) - led == 1
    still_running(array, held)
    (back,) = releases(site)
    assert back.startswith("0.1.0+") and not behind(site)
    nothing_lost_nothing_twice(array)
