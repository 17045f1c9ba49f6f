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
        made = Site(lab, tmp_path_factory.mktemp("upgrade"), {"sbatchd_executor": "systemd"})
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


def changed_tasks(output: str) -> Counter[str]:
    """ "TASK: host" of all that said changed."""
    found: Counter[str] = Counter()
    task = ""
    for line in output.splitlines():
        if named := re.match(r"(?:TASK|RUNNING HANDLER) \[(.*)\]", line):
            task = named[1]
        elif said := re.match(r"changed: \[([^\]]+)\]", line):
            found[f"{task}: {said[1].split(' ')[0]}"] += 1
    return found


def upgraded_while_work_runs(site: Site, name: str, *arguments: str) -> str:
    """Play upgrade.yml under an array; all that must hold is asserted. Returns what the play said."""
    array = Array(site, name)
    until(lambda: len(array.lines("lines")) >= HOLDING, "the first tasks run", 120)
    led, units = leaderships(site), attempts(site)
    said = site.play(*arguments, playbook=PLAYBOOK)
    assert attempts(site) & units, "what ran before it is still running"
    assert leaderships(site) - led <= 2, said
    assert array.states()["running"] >= HOLDING
    array.let_go()
    until(lambda: array.states()["succeeded"] == TASKS, f"all end well, not {array.states()}", 240)
    lines = array.lines("lines")
    assert sorted(int(line.split()[0]) for line in lines) == list(range(1, TASKS + 1))
    assert sorted(map(int, array.lines("ends"))) == list(range(1, TASKS + 1))
    assert {task["attempt"] for task in array.tasks()} == {1}
    return said


def attempts(site: Site) -> set[str]:
    """The transient units of attempts that run, by node."""
    listing = "systemctl list-units --plain --no-legend --state=running 'lavalite-attempt*' | cut -d' ' -f1"
    return {f"{node} {unit}" for node in WORKERS for unit in site.lab.run(node, listing).stdout.split()}


def test_from_one_release_to_the_next_while_work_runs(site: Site) -> None:
    (before,) = releases(site)
    next_release(site)
    checked = changed_tasks(site.play("--check", playbook=PLAYBOOK))
    assert releases(site) == {before}
    said = upgraded_while_work_runs(site, "up")
    assert changed_tasks(said) == checked
    (after,) = releases(site)
    assert after.startswith("0.1.1+")
    assert not behind(site)
    assert f"{after} is what all use. To go back: ansible-playbook {PLAYBOOK} -e lavalite_release={before}" in said
    assert changed_tasks(site.play(playbook=PLAYBOOK)) == Counter()
