"""`lavalite up` and what one does with it: the real command, the real daemons, no root needed, nothing replaced."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_SECONDS

from lavalite.base.processes import ProcessIdentity
from lavalite.cli.local_files import StateFolder, UpRecord

POOLS = """
cluster: rack1
pools:
  general: {nodes: {group: lavalite_nodes}, kinds: [cpu, memory], default: true}
queues:
  normal: {priority: 30, policy: best-fit, default: true}
  short: {priority: 50, policy: first-fit, limits: {walltime: 15m}}
"""


class Cli:
    """`lavalite` as a person calls it, with one state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("LAVALITE_")}
        self.environment["LAVALITE_STATE"] = str(state)

    def run(self, *typed: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [*prefix, sys.executable, "-P", "-m", "lavalite.cli.main", *typed]
        done = subprocess.run(
            command, env=self.environment, cwd="/tmp", capture_output=True, text=True, timeout=200, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def ok(self, *typed: str) -> str:
        done = self.run(*typed)
        assert done.returncode == 0, (typed, done.stdout, done.stderr, self.logs())
        return done.stdout

    def json(self, *typed: str) -> Any:
        return json.loads(self.ok(*typed, "-o", "json"))

    def submit(self, *typed: str) -> int:
        word, number = self.ok("submit", *typed).split()
        assert word == "job"
        return int(number)

    def job(self, number: int) -> Any:
        return self.json("job", str(number))

    def record(self) -> UpRecord:
        found = StateFolder(self.state).read_record()
        assert found
        return found

    def logs(self) -> str:
        """The ends of the daemons' logs, for whoever has to find out why a test failed."""
        files = sorted(self.state.glob("*/*.log"))
        return "\n".join(f"== {file}\n{file.read_text(errors='replace')[-3000:]}" for file in files)


def until(condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """What `condition` gives as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)
    return value


def processes_of(state: Path) -> list[int]:
    """Pids of all processes that were started for this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            mine = entry.name.isdecimal() and str(state).encode() in (entry / "cmdline").read_bytes()
            if mine and ProcessIdentity.of(int(entry.name)):
                found.append(int(entry.name))
    return found


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for the paths of sockets."""
    path = Path(tempfile.mkdtemp(prefix="lava-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def cli() -> Iterator[Cli]:
    with short_folder() as base:
        cli = Cli(base / "state")
        pools = base / "pools.yml"
        pools.write_text(POOLS)
        try:
            said = cli.ok("up", "--port-base", "0", "--node", "n1", "--pools", str(pools))
            assert said.startswith("up: node n1, ")
            yield cli
        finally:
            cli.run("down")
        assert processes_of(cli.state) == []


@pytest.fixture
def own() -> Iterator[Cli]:
    """A folder of its own, for what would disturb others."""
    with short_folder() as base:
        cli = Cli(base / "state")
        try:
            yield cli
        finally:
            cli.run("down")
        assert processes_of(cli.state) == []


def test_up_again_changes_nothing(cli: Cli) -> None:
    before = cli.record()
    assert cli.ok("up").startswith("runs already: node n1, ")
    assert cli.record() == before
    other = cli.run("up", "--node", "n2")
    assert (other.returncode, other.stderr.split(".")[0]) == (2, "--node: this folder belongs to node n1")


def test_the_cluster_can_be_looked_at(cli: Cli) -> None:
    [node] = cli.json("nodes")
    assert (node["name"], node["state"]) == ("n1", "ready")
    assert cli.json("status")["nodes"] == {"ready": 1}
    assert [p["name"] for p in cli.json("pools")] == ["general"]
    assert {q["name"] for q in cli.json("queues")} >= {"normal", "short"}
    assert cli.json("hosts") == []
    for noun in ("status", "nodes", "pools", "queues", "hosts", "jobs"):
        assert cli.ok(noun)
        assert cli.ok(noun, "-o", "wide")


def test_a_job_runs_and_its_output_is_read(cli: Cli) -> None:
    done = cli.run(
        "submit", "--name", "hello", "--env", "WHO=you", "--wait", "--shell", "echo hello $WHO; echo no >&2"
    )
    assert done.returncode == 0, (done.stderr, cli.logs())
    number = done.stdout.split()[1]
    assert f"job {number} succeeded" in done.stderr
    assert cli.ok("logs", number) == "hello you\n"
    assert cli.ok("logs", number, "--stderr") == "no\n"
    job = cli.job(int(number))
    assert (job["name"], job["state"], job["exit_code"], job["nodes"]) == ("hello", "succeeded", 0, ["n1"])
    assert number in [str(job["id"]) for job in cli.json("jobs", "--name", "hello")]


def test_a_word_with_spaces_is_no_shell_text(cli: Cli) -> None:
    number = cli.submit("--", "echo", "a  b; exit 3")
    until(lambda: cli.job(number)["state"] == "succeeded")
    assert cli.ok("logs", str(number)) == "a  b; exit 3\n"


def test_a_failure_is_the_exit_code_of_wait(cli: Cli) -> None:
    done = cli.run("submit", "--wait", "--shell", "exit 7")
    assert done.returncode == 1
    assert "failed (exit code 7)" in done.stderr


def test_an_array_has_tasks_of_its_own(cli: Cli) -> None:
    done = cli.run("submit", "--array", "1-4", "--wait", "--cpu", "0.1", "--shell", "exit $((LAVALITE_TASK == 3))")
    assert done.returncode == 1, (done.stderr, cli.logs())
    number = done.stdout.split()[1]
    states = {task["index"]: task["state"] for task in cli.json("tasks", number)}
    assert states == {1: "succeeded", 2: "succeeded", 3: "failed", 4: "succeeded"}
    assert "4 (3 succeeded, 1 failed)" in cli.ok("jobs")


def test_output_is_followed_to_its_end(cli: Cli) -> None:
    number = cli.submit("--shell", "echo one; sleep 2; echo two")
    until(lambda: cli.job(number)["state"] in ("running", "succeeded"))
    assert cli.ok("logs", str(number), "-f") == "one\ntwo\n"


def test_a_running_job_is_cancelled(cli: Cli) -> None:
    number = cli.submit("--", "sleep", "1000")
    until(lambda: cli.job(number)["state"] == "running")
    assert cli.ok("cancel", str(number)).startswith(f"job {number} ")
    until(lambda: cli.job(number)["state"] == "cancelled")


def test_a_held_job_waits_for_its_release(cli: Cli) -> None:
    number = cli.submit("--hold", "--", "true")
    job = cli.job(number)
    assert job["state"] == "pending"
    assert job["why"]
    assert f"why        {job['why']}" in cli.ok("job", str(number))
    cli.ok("release", str(number))
    until(lambda: cli.job(number)["state"] == "succeeded")


def test_a_job_is_suspended_and_goes_on(cli: Cli) -> None:
    number = cli.submit("--", "sleep", "1000")
    until(lambda: cli.job(number)["state"] == "running")
    cli.ok("suspend", str(number))
    until(lambda: cli.job(number)["state"] == "suspended")
    cli.ok("resume", str(number))
    until(lambda: cli.job(number)["state"] == "running")
    cli.ok("cancel", str(number))
    until(lambda: cli.job(number)["state"] == "cancelled")


def test_the_same_key_is_the_same_job(cli: Cli) -> None:
    first = cli.submit("--key", "night-1", "--", "true")
    again = cli.ok("submit", "--key", "night-1", "--", "true")
    assert again == f"job {first} (submitted before)\n"


def test_what_can_never_fit_is_refused(cli: Cli) -> None:
    done = cli.run("submit", "--cpu", "9000", "--", "true")
    assert done.returncode == 2
    assert "9000 cpu" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_does_not_fit_now_says_why(cli: Cli) -> None:
    [node] = cli.json("nodes")
    cores = str(node["resources"]["cpu"]["capacity"] // 1000)
    first = cli.submit("--cpu", cores, "--", "sleep", "1000")
    until(lambda: cli.job(first)["state"] == "running")
    second = cli.submit("--cpu", cores, "--", "true")
    why = until(lambda: cli.job(second)["why"])
    assert "\n" not in why
    assert why.endswith(".")
    said = cli.ok("explain", str(second))
    assert said.startswith(f"job {second} waits")
    assert "1 node" in said
    cli.ok("cancel", str(first))
    until(lambda: cli.job(second)["state"] == "succeeded")


def test_a_dry_run_submits_nothing(cli: Cli) -> None:
    before = len(cli.json("jobs"))
    assert "nothing was submitted" in cli.ok("submit", "--dry-run", "--", "true")
    assert len(cli.json("jobs")) == before


def test_what_does_not_exist_is_wrong_input(cli: Cli) -> None:
    for typed in (
        ("job", "999999"),
        ("cancel", "999999"),
        ("nodes", "nowhere"),
        ("submit", "--queue", "nowhere", "--", "true"),
    ):
        done = cli.run(*typed)
        assert done.returncode == 2, (typed, done.stderr)
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


def test_a_definition_is_applied_once(cli: Cli) -> None:
    file = cli.state.parent / "other.yml"
    file.write_text(POOLS + "  long: {priority: 10, policy: best-fit}\n")
    assert "would change" in cli.ok("definition", "apply", str(file), "--check")
    assert "applied as version" in cli.ok("definition", "apply", str(file))
    assert "nothing changes" in cli.ok("definition", "apply", str(file))
    assert "long" in cli.ok("definition", "show")
    file.write_text(POOLS.replace("best-fit", "worst-fit"))
    refused = cli.run("definition", "apply", str(file))
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"{file}:")


def test_the_url_of_the_api_wants_a_token(cli: Cli) -> None:
    url = f"http://127.0.0.1:{cli.record().ports.api}"
    done = cli.run("status", "--api", url)
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "LAVALITE_TOKEN" in done.stderr


@pytest.mark.slow
def test_only_what_is_missing_is_started(cli: Cli) -> None:
    before = cli.record()
    number = cli.submit("--shell", "sleep 8; echo survived")
    until(lambda: cli.job(number)["state"] == "running")
    before.processes["sbatchd"].end(10)
    assert cli.ok("up").startswith("started sbatchd: ")
    after = cli.record()
    assert after.processes["lim"] == before.processes["lim"]
    assert after.processes["sbatchd"] != before.processes["sbatchd"]
    until(lambda: cli.job(number)["state"] == "succeeded")
    assert cli.ok("logs", str(number)) == "survived\n"


@pytest.mark.slow
def test_down_leaves_nothing_and_up_finds_all_again(own: Cli) -> None:
    own.ok("up", "--port-base", "0")
    done = own.submit("--", "echo", "kept")
    until(lambda: own.job(done)["state"] == "succeeded")
    running = own.submit("--", "sleep", "1000")
    until(lambda: own.job(running)["state"] == "running")
    ports = own.record().ports
    said = own.ok("down")
    assert "1 running attempt ended" in said
    assert processes_of(own.state) == []
    assert ports.taken() == []
    assert own.ok("down") == "nothing was running\n"
    gone = own.run("jobs")
    assert gone.returncode == 3
    assert "lavalite up" in gone.stderr

    own.ok("up")
    assert own.record().ports == ports
    assert own.job(done)["state"] == "succeeded"
    assert own.ok("logs", str(done)) == "kept\n"
    until(lambda: own.job(running)["state"] != "running")

    own.ok("down", "--purge")
    assert not own.state.exists()


@pytest.mark.slow
def test_jobs_may_be_kept_running(own: Cli) -> None:
    own.ok("up", "--port-base", "0")
    flag = own.state.parent / "flag"
    number = own.submit("--shell", f"while [ ! -e {flag} ]; do sleep 0.2; done; echo went on")
    until(lambda: own.job(number)["state"] == "running")
    assert "1 running attempt goes on" in own.ok("down", "--keep-jobs")
    assert own.run("jobs").returncode == 3
    own.ok("up")
    assert own.job(number)["state"] in ("running", "unknown")
    flag.touch()
    until(lambda: own.job(number)["state"] == "succeeded")
    assert own.ok("logs", str(number)) == "went on\n"


@pytest.mark.slow
def test_a_killed_lim_is_started_again_and_jobs_go_on(own: Cli) -> None:
    own.ok("up", "--port-base", "0")
    number = own.submit("--", "sleep", "1000")
    until(lambda: own.job(number)["state"] == "running")
    killed = own.record().processes["lim"]
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait_until_gone(5)
    assert own.ok("up").startswith("started lim: ")
    assert own.job(number)["state"] in ("running", "unknown")
    os.kill(own.record().processes["lim"].pid, signal.SIGKILL)
    # The scheduler that is left behind is no reason to leave anything running.
    own.ok("down")
    assert processes_of(own.state) == []


def test_a_taken_port_is_said_and_nothing_is_started(own: Cli) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        done = own.run("up", "--port-base", str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"port {port} on 127.0.0.1 is taken. ")
    assert "--port-base" in done.stderr
    assert processes_of(own.state) == []


def test_a_bad_pools_file_starts_nothing(own: Cli) -> None:
    file = own.state.parent / "pools.yml"
    file.write_text("cluster: c\npools: {general: {nodes: '*', kinds: [cup]}}\n")
    done = own.run("up", "--port-base", "0", "--pools", str(file))
    assert done.returncode == 2
    assert done.stderr.startswith(f"{file}:2: pools.general.kinds")
    assert not own.state.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_elses_folder_is_refused(own: Cli) -> None:
    own.state.mkdir(mode=0o755)
    own.state.parent.chmod(0o755)
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    done = own.run("up", "--port-base", "0", prefix=nobody)
    assert done.returncode == 2, done.stderr
    assert f"--state: state folder {own.state} " in done.stderr
    own.environment["LAVALITE_STATE"] = str(own.state / "below")
    done = own.run("up", "--port-base", "0", prefix=nobody)
    assert done.returncode == 2, done.stderr
    assert "cannot be made (Permission denied)" in done.stderr
