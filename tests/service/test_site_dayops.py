"""What an operator does with a cluster that runs: backup and restore, drain, a candidate whose disk is lost, remove.

Five hosts, as in test_site.py. The tests share one cluster and run in their order. The commands are those of
docs/operating.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from lab_site import BIN, CANDIDATES, PERSON, ROOT, WORKERS, Site, until

LAVALITE = "/opt/lavalite/current/bin/lavalite"
HERE = "/var/tmp/dayops"
"""On workers: each attempt writes that it begins, and goes on until it is let go by its job's name."""
TASK = """
echo "$LAVALITE_ATTEMPT_ID" >> {here}/begun
until [ -e {here}/go-{name} ]; do sleep 0.2; done
"""
ETCD = "/var/lib/etcd/lavalite"
JOBS_PER_GENERATION = 1_000_000_000

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("dayops")]


class Day:
    """The cluster, its jobs by name, and what was kept of it."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.lab, self.folder = site, site.lab, folder
        self.jobs: dict[str, int] = {}
        self.backup = Path()

    def play(self, line: str, *more: str) -> str:
        """The output of a documented command line, which did not fail."""
        return self.site.play(*line.split()[4:], *more, playbook=line.split()[3])

    def refused(self, line: str, *more: str) -> str:
        done = self.site.run("ansible-playbook", *line.split()[3:], *more)
        assert done.returncode != 0, done.stdout[-4000:]
        return done.stdout

    def ask(self, words: str, *, host: str = "ctl1", check: bool = True) -> Any:
        """What `lavalite` says as root on a candidate; None where nobody answers, which must be allowed."""
        done = self.lab.run(host, f"{LAVALITE} {words} --output json", check=check)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def submit(self, name: str, options: str = "", *, first: str = "") -> int:
        """A job of PERSON that does something first, and runs until it is let go."""
        script = first + TASK.format(here=HERE, name=name)
        asked = f"{LAVALITE} submit --output json --cpu 0.1 --memory 16MiB --name {name} {options} --shell"
        said = self.lab.run("ctl1", f"cd /tmp; runuser -u {PERSON} -- {asked} '{script}'").stdout
        (self.jobs[name],) = json.loads(said)["ids"]
        return self.jobs[name]

    def let_go(self, *names: str) -> None:
        files = " ".join(f"{HERE}/go-{name}" for name in names)
        for node in WORKERS:
            self.lab.run(node, f"touch {files}")

    def task(self, name: str) -> dict[str, Any]:
        """The one task of a job; without a state while nobody answers."""
        (found,) = self.ask(f"tasks {self.jobs[name]}", check=False) or [{}]
        return dict(found)

    def becomes(self, name: str, state: str, seconds: float = 60.0) -> dict[str, Any]:
        """The task, when it has come to that state. Else an error says all that was found of it."""
        deadline = time.monotonic() + seconds
        while (task := self.task(name)).get("state") != state:
            assert time.monotonic() < deadline, f"{name} is not {state} within {seconds:g} s:\n{self.told(name)}"
            time.sleep(0.2)
        return task

    def told(self, name: str) -> str:
        """What the scheduler says of a job, and nodes of its attempts."""
        said = [f"{self.task(name)}", str(self.ask("status", check=False))]
        attempt = rf"{self.jobs[name]}\.0\."
        for node in WORKERS:
            lines = [
                f"grep -h '{attempt}' /var/lib/lavalite/sbatchd/journal",
                f"journalctl --no-pager -q -o short-precise -u 'lavalite-{self.jobs[name]}.0.*' -n 20",
                "journalctl --no-pager -q -o short-precise -u lavalite-sbatchd -u lavalite-fence -n 40",
                f"systemctl list-units --all --plain --no-legend 'lavalite-{self.jobs[name]}.0.*'",
            ]
            said.append(f"== {node}\n{self.lab.run(node, '; '.join(lines), check=False).stdout}")
        return "\n".join(said) + self.site.journals()

    def processes(self) -> dict[str, str]:
        """The first process of each attempt that runs, by node and unit."""
        line = (
            "for unit in $(systemctl list-units --plain --no-legend --state=running 'lavalite-*.*.*.service' |"
            " cut -d' ' -f1); do echo $unit $(systemctl show --property=MainPID --value $unit); done"
        )
        said = {node: self.lab.run(node, line).stdout.splitlines() for node in WORKERS}
        return {f"{node} {each.split()[0]}": each.split()[1] for node, lines in said.items() for each in lines}

    def begun(self) -> Counter[str]:
        """How often each attempt began, anywhere."""
        said = [self.lab.run(node, f"cat {HERE}/begun", check=False).stdout for node in WORKERS]
        return Counter(" ".join(said).split())

    def daemons(self) -> dict[str, str]:
        """The processes of the control plane, and of the store, on each candidate."""
        units = "lavalite-lim lavalite-mbatchd etcd"
        line = f"systemctl show --property=MainPID,ActiveEnterTimestampMonotonic {units}; stat -c %i {ETCD}/member"
        return {name: self.lab.run(name, line).stdout for name in CANDIDATES}


def documented(playbook: str, **replaced: str) -> list[str]:
    """The command lines of docs/operating.md that play it, with a lab's names for the page's."""
    page = (ROOT / "docs/operating.md").read_text()
    lines = re.findall(
        rf"^\$ (ansible-playbook -i inventories/rack playbooks/{playbook}\.yml.*)$", page, re.MULTILINE
    )
    return [put(line, replaced) for line in lines]


def put(line: str, replaced: dict[str, str]) -> str:
    for name, value in {"confirm": "lab", **replaced}.items():
        line = re.sub(rf"\b{name}=\S+", f"{name}={value}", line)
    return line


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    with Lab([*CANDIDATES, *WORKERS]) as lab:
        folder = tmp_path_factory.mktemp("dayops")
        site = Site(lab, folder)
        for node in WORKERS:
            lab.run(node, f"install -d -m 1777 {HERE}")
        site.play()
        yield Day(site, folder)


def test_a_backup_is_made_while_work_runs(day: Day) -> None:
    day.submit("runs")
    for name in ("starts-later", "ends-later"):
        day.submit(name, "--hold")
    day.becomes("runs", "running")
    said = day.play(documented("backup", backup_path=str(day.folder / "backups"))[1])
    (day.backup,) = (day.folder / "backups").iterdir()
    assert f"{day.backup}: revision" in said.replace("\n", " ") and "It keeps the law." in said
    assert [path.stat().st_mode & 0o777 for path in (day.backup, *sorted(day.backup.iterdir()))] == [
        0o700,
        0o600,
        0o600,
    ]
    manifest = json.loads((day.backup / "manifest.json").read_text())
    assert (manifest["cluster"], manifest["kind"]) == ("lab", "etcd")
    assert manifest["found"]["jobs"] == 3 and manifest["found"]["commitments"] == 1, manifest


def test_what_is_in_the_store_and_in_a_backup_can_be_added_up(day: Day) -> None:
    page = (ROOT / "docs/operating.md").read_text()
    (live, kept) = re.findall(r"^\$ lavalite (store check.*)$", page, re.MULTILINE)
    day.lab.put("ctl1", day.backup, "/srv/backups")
    kept = kept.replace("rack1-20260131T030000Z", day.backup.name).replace("rack1", "lab")
    for words in (live, kept):
        found = day.ask(words)
        assert (found["faults"], found["commitments"], found["cluster"]) == ([], 1, "lab"), found


def test_what_happens_after_the_backup(day: Day) -> None:
    """No law by itself: what the restore has to cope with."""
    for name in ("starts-later", "ends-later"):
        day.lab.run("ctl1", f"{LAVALITE} release {day.jobs[name]}")
        day.becomes(name, "running")
    day.submit("unknown")
    day.becomes("unknown", "running")
    day.let_go("ends-later")
    day.becomes("ends-later", "succeeded")


def test_a_restore_that_is_not_meant_or_of_half_a_backup_changes_nothing(day: Day) -> None:
    before = day.daemons()
    (line,) = documented("restore", backup=str(day.backup))
    said = day.refused(line.rpartition(" -e confirm=")[0])
    assert "confirm: what cluster lab has committed since the backup is forgotten" in said
    assert "--limit: ctl2, ctl3 would be left out" in day.refused(line, "--limit", "ctl1")
    half = day.folder / "half"
    shutil.copytree(day.backup, half)
    os.truncate(half / "store.db", (half / "store.db").stat().st_size // 2)
    said = day.refused(documented("restore", backup=str(half))[0])
    assert f"backup: {half}/store.db is not what its manifest says: it was cut off or changed" in said
    assert day.daemons() == before


def interrupt(day: Day, line: str) -> None:
    """A play is killed once it has put the first member's data aside."""
    command = [str(BIN / "ansible-playbook"), "-i", str(day.site.folder), *line.split()[3:]]
    with subprocess.Popen(
        command, cwd=ROOT, env=day.site._environment, stdout=subprocess.DEVNULL, start_new_session=True
    ) as play:

        def at_it() -> bool:
            assert play.poll() is None, f"it ended with {play.returncode}"
            found = [day.lab.run(name, f"test -e {ETCD}.restoring", check=False) for name in CANDIDATES]
            return any(each.returncode == 0 for each in found)

        try:
            until(at_it, "a member's data is put aside", 120)
        finally:
            os.killpg(play.pid, signal.SIGKILL)


def test_a_restore_starts_nothing_twice_and_ends_nothing(day: Day) -> None:
    running, generation = day.processes(), day.ask("status")["epoch"][0]
    inode = {name: day.lab.run(name, f"stat -c %i {ETCD}/member").stdout for name in CANDIDATES}
    assert len(running) == 3, running
    (line,) = documented("restore", backup=str(day.backup))
    interrupt(day, line)
    said = day.play(line)
    found = json.loads((day.backup / "manifest.json").read_text())["found"]
    assert f", {found['jobs']} jobs, {found['commitments']} commitments; the law holds" in said, said[-3000:]
    for name in CANDIDATES:
        kept = day.lab.run(name, f"stat -c %i {ETCD}.before-restore/member; test ! -e {ETCD}.restoring").stdout
        assert kept == inode[name], "what was there before the first of both plays is kept"

    status = until(lambda: day.site.status("ctl1"), "a scheduler answers")
    assert status["epoch"][0] > generation
    assert {day.becomes(name, "running")["attempt"] for name in ("runs", "starts-later")} == {1}
    day.becomes("ends-later", "succeeded")
    until(lambda: day.ask("status")["quarantined"] == 1, "what the backup does not know is in quarantine")
    assert day.processes() == running, day.told("runs") + day.told("starts-later")
    (leader,) = day.site.leaders()
    assert day.ask("store check", host=leader)["faults"] == []

    assert day.submit("new") > (generation + 1) * JOBS_PER_GENERATION
    day.becomes("new", "running")
    day.let_go("runs", "starts-later", "new", "unknown")
    for name in ("runs", "starts-later", "new"):
        day.becomes(name, "succeeded")
    until(lambda: day.ask("status")["quarantined"] == 0, "what was in quarantine has ended")
    twice = {attempt: count for attempt, count in day.begun().items() if count != 1}
    assert not twice and len(day.begun()) == 5, f"{day.begun()} of {day.jobs}"


def drained(day: Day) -> dict[str, str]:
    """Nodes that get no work, and why."""
    return {node["name"]: node["drain"]["reason"] for node in day.ask("nodes") if node.get("drain")}


def test_a_drained_node_is_freed_by_a_deadline_and_comes_back(day: Day) -> None:
    day.submit("moves", "--rerunnable")
    first = day.becomes("moves", "running")["node"]
    drain, back = documented("drain", node=first, deadline="2s")
    day.play(drain)
    assert drained(day) == {first: "disk"}
    assert not [unit for unit in day.processes() if unit.startswith(f"{first} ")]
    again = day.becomes("moves", "running")
    assert (again["attempt"], [again["node"]]) == (2, [name for name in WORKERS if name != first]), again
    day.play(back)
    assert drained(day) == {}


def test_without_a_deadline_a_drained_node_is_free_when_its_work_has_ended(day: Day) -> None:
    task, before = day.task("moves"), day.processes()
    drain, back = documented("drain", node=task["node"])
    drain = drain.replace(" -e deadline=30m", "")
    assert f"node {task['node']} still has 1 tasks after 1 s" in day.refused(drain, "-e", "wait_seconds=1")
    assert day.task("moves") == task and day.processes() == before, day.told("moves")
    day.submit("beside")
    assert day.becomes("beside", "running")["node"] != task["node"]
    day.let_go("moves", "beside")
    day.play(drain)
    for name in ("moves", "beside"):
        day.becomes(name, "succeeded")
    day.play(back)
    assert drained(day) == {}


def hand_over(day: Day, *, to: list[str]) -> str:
    """Who leads, once it is one of these."""

    def led() -> str:
        found = day.site.leaders()
        if len(found) == 1 and found[0] in to:
            return found[0] if day.site.status(found[0]) else ""
        if len(found) == 1 and day.site.status(found[0]):
            day.lab.run(found[0], f"{LAVALITE} resign", check=False)
        return ""

    return str(until(led, f"one of {to} leads", 120))


def members(day: Day, host: str) -> dict[str, str]:
    """Members of etcd that have started: their ids by name."""
    said = day.lab.run(host, 'eval "$(grep ^export /usr/local/sbin/lavalite-etcd)"; etcdctl member list').stdout
    rows = [line.split(", ") for line in said.splitlines()]
    return {name: number for number, state, name, *_ in rows if state == "started"}


def test_a_candidate_that_led_and_lost_its_disk_is_a_backup_again(day: Day) -> None:
    # Not the first one: authorities are there, and come back from a backup alone.
    lost = hand_over(day, to=CANDIDATES[1:])
    others = [name for name in CANDIDATES if name != lost]
    seats = members(day, "ctl1")
    assert sorted(seats) == CANDIDATES, seats
    day.submit("through")
    day.becomes("through", "running")
    running = day.processes()
    day.lab.power_off(lost)
    until(lambda: day.site.leaders() and day.site.leaders()[0] in others, "another candidate leads")
    until(lambda: day.site.status("ctl1"), "its scheduler answers")
    day.submit("meanwhile")
    day.let_go("meanwhile")
    day.becomes("meanwhile", "succeeded")

    day.lab.power_on(lost, keep_disk=False)
    day.lab.run(lost, f"test ! -e {ETCD} && useradd --create-home {PERSON}")
    day.site.play()
    after = members(day, "ctl1")
    assert {name: seat == seats[name] for name, seat in after.items()} == {name: name != lost for name in CANDIDATES}
    assert day.processes() == running and day.task("through")["state"] == "running", day.told("through")
    hand_over(day, to=[lost])
    day.let_go("through")
    day.becomes("through", "succeeded")
    day.submit("after")
    day.let_go("after")
    day.becomes("after", "succeeded")


def test_a_worker_is_removed_and_what_ran_there_is_known_to_have_ended(day: Day) -> None:
    day.submit("leaving", first='trap "" TERM; ')
    gone = day.becomes("leaving", "running")["node"]
    (stays,) = (name for name in WORKERS if name != gone)
    line = documented("remove", node=gone)[0]
    left_out = ", ".join(name for name in (*CANDIDATES, stays) if name != "ctl1")
    assert f"--limit: {left_out} would be left out" in day.refused(line, "--limit", f"ctl1,{gone}")
    day.play(line, "-e", "force=true")
    assert gone not in [node["name"] for node in day.ask("nodes")]
    assert day.task("leaving")["reason"].startswith("drained"), day.told("leaving")
    left = "systemctl list-unit-files --no-legend 'lavalite*'; ls -d /opt/lavalite /usr/sbin/lavalite-* 2>/dev/null"
    assert day.lab.run(gone, left, check=False).stdout == ""
    for name in (*CANDIDATES, stays):
        trusted = json.loads(day.lab.run(name, "cat /etc/lavalite/trust.json").stdout)
        assert gone not in trusted and stays in trusted, name
    day.submit("last")
    assert day.becomes("last", "running")["node"] == stays
    day.let_go("last")
    day.becomes("last", "succeeded")
