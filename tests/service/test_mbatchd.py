"""One scheduler as real processes, asked as people ask it: jobs, definitions, output, events, who may what."""

from __future__ import annotations

import asyncio
import getpass
import grp
import http.client
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from api_calls import NOBODY, UnixHttp, as_user, call, open_folder, wait_for
from cluster import LimProcess
from whole import Whole

from lavalite.api.client import Client, Target
from lavalite.api.models import DefinitionPut, EntryPut, Job, Submit
from lavalite.base.errors import ConflictError, InputError, LavaLiteError, RefusedError, UnknownNameError
from lavalite.model.job import Array, Dependency, DependencyKind, Gang, JobSpec, Request
from lavalite.model.parts import Part
from lavalite.wire.frames import AskToken, Granted

FINAL = ("succeeded", "failed", "cancelled")
SLEEP = ["sleep", "600"]
POOLS = """\
cluster: test
pools:
  general: {nodes: "*", kinds: [cpu, memory], default: true}
queues:
  normal: {priority: 30, policy: best-fit, default: true}
"""


class One:
    """The leader of a cluster of one node, and shortcuts to ask it."""

    def __init__(self, cluster: Whole, lim: LimProcess) -> None:
        self.cluster, self.lim = cluster, lim
        self.client = cluster.client(lim)
        self.socket = lim.folder / "m" / "api.sock"
        self.api_url = str(lim.config["api_url"])

    def submit(self, *command: str, **fields: Any) -> int:
        return self.client.submit([Submit(spec=JobSpec(command=list(command) or ["true"], **fields))]).ids[0]

    def reach(self, job: int, *states: str, seconds: float = 30) -> Job:
        return wait_for(  # type: ignore[no-any-return]
            lambda: found if (found := self.client.job(job)).state in states else None,
            seconds,
            f"job {job} is {states}",
        )

    def ended(self, job: int) -> Job:
        return self.reach(job, *FINAL)

    def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        return call(UnixHttp(self.socket), method, path, body, headers)

    def over_tcp(self, method: str, path: str, token: str = "", body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self.api_url.removeprefix("http://"), timeout=60)
        return call(connection, method, path, body, {"Authorization": f"Bearer {token}"} if token else None)

    def as_nobody(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return as_user(NOBODY, lambda: self.raw(method, path, body))


@pytest.fixture(scope="module")
def one() -> Iterator[One]:
    with open_folder() as folder:
        store = {"kind": "sqlite", "path": str(folder / "store.db")}
        # Nothing here is about losing a lease, and where everything is slow, one of 3 s is lost.
        with Whole(folder, {"n1": 9}, store=store, lease_ttl_seconds=10).running() as cluster:
            (folder / "n1").chmod(0o755)  # its key made it private
            found = One(cluster, asyncio.run(cluster.serving()))
            yield found
            found.client.close()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test ends what it began, and nothing is held after it."""
    yield
    if "one" not in request.fixturenames:
        return
    one: One = request.getfixturevalue("one")
    for job in one.client.jobs(state="pending,committed,running,suspended,unknown"):
        one.client.cancel(job.id)
    wait_for(lambda: not list(one.client.commitments()), 30, "nothing is committed any more")
    status = one.client.status()
    assert (status.commitments, status.quarantined) == (0, 0)


# --- jobs -------------------------------------------------------------------------------------------------------


def test_a_job_runs_and_tells_what_it_wrote(one: One) -> None:
    job = one.submit("/bin/sh", "-c", "echo out; echo err >&2; exit 3", name="three")
    done = one.ended(job)
    assert (done.state, done.exit_code, done.nodes, done.name, done.why) == ("failed", 3, ["n1"], "three", "")
    assert b"".join(one.client.output(job)) == b"out\n"
    assert b"".join(one.client.output(job, stream="stderr")) == b"err\n"
    assert b"".join(one.client.output(job, offset=2)) == b"t\n"


def test_what_runs_is_cancelled_and_again_changes_nothing(one: One) -> None:
    job = one.submit(*SLEEP)
    one.reach(job, "running")
    one.client.cancel(job)
    assert one.ended(job).state == "cancelled"
    assert one.client.cancel(job).state == "cancelled"
    with pytest.raises(ConflictError, match="has ended"):
        one.client.hold(job)


def test_a_held_job_waits_until_it_is_released(one: One) -> None:
    job = one.submit(hold=True)
    assert "hold" in one.client.job(job).why or "held" in one.client.job(job).why
    one.client.release(job)
    assert one.ended(job).state == "succeeded"
    job = one.submit(not_before=time.time() + 3600)
    one.client.hold(job)
    assert one.client.job(job).state == "pending"


def test_a_job_is_suspended_resumed_and_requeued(one: One) -> None:
    job = one.submit(*SLEEP)
    one.reach(job, "running")
    one.client.suspend(job)
    one.reach(job, "suspended")
    one.client.resume(job)
    one.reach(job, "running")
    one.client.requeue(job)

    def second() -> bool:
        task = next(one.client.tasks(job))
        return (task.state, task.attempt) == ("running", 2)

    wait_for(second, 30, "its second attempt runs")


def test_arrays_run_each_task_once_and_are_paged(one: One, tmp_path: Path) -> None:
    job = one.submit(
        "/bin/sh",
        "-c",
        "exit $((LAVALITE_TASK == 7))",
        array=Array(first=1, last=39, step=2),
        request=Request(cpu_milli=10),
    )
    done = one.ended(job)
    assert (done.state, done.tasks, done.counts, done.array) == (
        "failed",
        20,
        {"failed": 1, "succeeded": 19},
        "1-39:2",
    )
    seen, cursor = [], ""
    while True:
        status, page = one.raw("GET", f"/v1/jobs/{job}/tasks?limit=7&cursor={cursor}")
        assert status == 200 and len(page["items"]) <= 7
        seen += [task["index"] for task in page["items"]]
        if not (cursor := page["next_cursor"]):
            break
    assert seen == list(range(1, 40, 2))
    assert [t.index for t in one.client.tasks(job, state="failed")] == [7]
    with pytest.raises(InputError, match="20 tasks"):
        list(one.client.output(job))
    with pytest.raises(InputError, match="no task 2"):
        one.client.cancel(job, tasks=[2])


def test_an_array_of_many_chunks_is_taken_in_and_cancelled(one: One) -> None:
    job = one.submit(array=Array(first=0, last=19_999), hold=True)
    assert one.client.job(job).counts == {"pending": 20_000}
    one.client.cancel(job, tasks=[0, 19_999])
    assert one.client.job(job).counts == {"pending": 19_998, "cancelled": 2}
    one.client.cancel(job)
    assert one.client.job(job).state == "cancelled"


@pytest.mark.parametrize(
    ("kind", "code", "starts"),
    [
        ("done", 0, True),
        ("done", 1, False),
        ("exit", 1, True),
        ("exit", 0, False),
        ("ended", 0, True),
        ("ended", 1, True),
    ],
)
def test_a_job_waits_for_what_it_depends_on(one: One, kind: str, code: int, starts: bool) -> None:
    first = one.submit("/bin/sh", "-c", f"exit {code}", hold=True)
    then = one.submit(depends=[Dependency(kind=DependencyKind(kind), job=first)])
    assert str(first) in one.client.job(then).why
    assert one.client.explain(then).waits_for
    one.client.release(first)
    one.ended(first)
    if starts:
        assert one.ended(then).state == "succeeded"
    else:
        assert one.client.job(then).state == "pending"
        assert str(first) in one.client.job(then).why


def test_what_can_never_fit_is_refused_with_its_reasons(one: One) -> None:
    with pytest.raises(InputError, match=r"can never be had here.*Ask for less"):
        one.submit(request=Request(cpu_milli=10**9))
    with pytest.raises(InputError, match=r"no queue nowhere\. There is normal"):
        one.submit(queue="nowhere")


def test_what_does_not_fit_now_waits_and_says_exactly_why(one: One) -> None:
    cores = one.client.node("n1").resources["cpu"].capacity
    first = one.submit(*SLEEP, request=Request(cpu_milli=cores - 100))
    one.reach(first, "running")
    then = one.submit(request=Request(cpu_milli=200))
    why = wait_for(lambda: one.client.job(then).why, 10, "it says why it waits")
    assert "n1" in why and "0.1" in why, why
    told = one.client.explain(then)
    assert (told.nearest, told.lacks) == ("n1", {"cpu": 100}), told
    one.client.cancel(first)
    assert one.ended(then).state == "succeeded"


def test_a_task_that_has_the_node_for_itself_keeps_others_out(one: One) -> None:
    alone = one.submit(*SLEEP, request=Request(cpu_milli=100, exclusive=True))
    one.reach(alone, "running")
    then = one.submit(request=Request(cpu_milli=100))
    why = wait_for(lambda: one.client.job(then).why, 10, "it says why it waits")
    assert f"has a task that has it for itself; nearest n1. On n1: job {alone}." in why, why
    told = one.client.explain(then)
    assert (told.nearest, told.lacks, told.held_by) == ("n1", {}, [f"job {alone}"]), told
    one.client.cancel(alone)
    assert one.ended(then).state == "succeeded"


def test_the_same_key_makes_no_second_job(one: One) -> None:
    ask = [Submit(spec=JobSpec(command=["true"]), key="once")]
    first = one.client.submit(ask)
    again = one.client.submit(ask)
    assert (again.ids, again.existing) == (first.ids, first.ids)
    assert one.client.job(first.ids[0]).key == "once"
    # Also where it could not be let in now.
    never = JobSpec(command=["true"], request=Request(cpu_milli=10**9))
    assert one.client.submit([Submit(spec=never, key="once")]).existing == first.ids
    both = one.client.submit([Submit(spec=JobSpec(command=["true"]), key="twins")] * 2)
    assert both.ids[0] == both.ids[1] == both.existing[0]


def test_a_batch_is_let_in_whole_or_not_at_all(one: One) -> None:
    before = len(list(one.client.jobs()))
    jobs = [Submit(spec=JobSpec(command=["true"], request=Request(cpu_milli=10))) for _ in range(150)]
    bad = [*jobs[:100], Submit(spec=JobSpec(command=["true"], queue="nowhere")), *jobs[100:]]
    with pytest.raises(InputError, match=r"jobs\.100\.queue"):
        one.client.submit(bad)
    assert len(list(one.client.jobs())) == before
    assert one.client.submit(jobs, dry_run=True).ids == []
    assert len(list(one.client.jobs())) == before
    ids = one.client.submit(jobs).ids
    assert len(set(ids)) == 150
    for job in ids:
        assert one.ended(job).state == "succeeded"
    status, page = one.raw("GET", f"/v1/jobs?limit=100&name=&user={getpass.getuser()}")
    assert status == 200 and len(page["items"]) == 100 and page["next_cursor"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"command": ["true"], "cwd": "\ud800"}, "no text"),
        ({"command": ["true"], "stdout_path": "x" * 600_000}, "600"),
        ({"command": ["true"], "not_before": float("nan")}, "not_before"),
        ({"command": ["true"], "comand": 1}, "comand: there is no such field"),
        ({"command": []}, "command"),
        ({"command": ["a\0b"]}, "NUL"),
        ({"command": ["true"], "array": {"first": 5, "last": 1}}, "ends before it begins"),
    ],
)
def test_no_job_can_break_the_scheduler(one: One, spec: dict[str, Any], says: str) -> None:
    pid = one.cluster.scheduler_pid(one.lim)
    status, answer = one.raw("POST", "/v1/jobs", {"jobs": [{"spec": spec}]})
    assert status == 400
    said = " ".join(f"{e['field']}: {e['message']}" for e in answer["errors"])
    assert says in said
    assert one.raw("GET", "/v1/status")[0] == 200
    assert one.cluster.scheduler_pid(one.lim) == pid


# --- output and events ------------------------------------------------------------------------------------------


def test_output_is_followed_from_before_the_start_to_the_end(one: One, tmp_path: Path) -> None:
    go = tmp_path / "go"
    job = one.submit("/bin/sh", "-c", f"echo first; until [ -e {go} ]; do sleep 0.05; done; echo last", hold=True)
    with pytest.raises(LavaLiteError, match="has not run"):
        list(one.client.output(job))
    pieces: list[bytes] = []

    def follow() -> None:
        with one.cluster.client(one.lim) as client:
            pieces.extend(client.output(job, follow=True))

    reader = threading.Thread(target=follow)
    reader.start()
    one.client.release(job)
    wait_for(lambda: b"".join(pieces) == b"first\n", 20, "the first line comes while it runs")
    go.touch()
    reader.join(60)
    assert not reader.is_alive()
    assert b"".join(pieces) == b"first\nlast\n"


def test_nothing_is_awaited_for_who_has_gone(one: One) -> None:
    """People follow what waits, and lose patience; a hundred of them leave nothing behind."""
    job = one.submit(*SLEEP)
    one.reach(job, "running")
    for _ in range(100):
        connection = UnixHttp(one.socket)
        connection.request("GET", f"/v1/jobs/{job}/output?follow=true")
        connection.close()
    quiet = UnixHttp(one.socket)
    quiet.sock = None

    def still_served() -> bool:
        connection = UnixHttp(one.socket)
        try:
            connection.request("GET", f"/v1/jobs/{job}/output")
            return connection.getresponse().status == 200
        finally:
            connection.close()

    wait_for(still_served, 10, "there is room for another reader")


def test_a_large_output_comes_whole(one: One) -> None:
    """More than may wait for a reader: where it is cut off, it goes on at its offset."""
    size = 40 * 1024 * 1024
    job = one.submit("/bin/sh", "-c", f"head -c {size} /dev/zero | tr '\\0' x")
    assert one.ended(job).state == "succeeded"
    assert sum(map(len, one.client.output(job))) == size
    assert "Traceback" not in one.lim.scheduler_log


def test_events_tell_what_changes(one: One) -> None:
    connection = UnixHttp(one.socket)
    connection.request("GET", "/v1/events")
    stream = connection.getresponse()
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.readline().startswith(b":")
    job = one.submit("true")
    seen = []
    while ("job", str(job), "succeeded") not in seen:
        line = stream.readline()
        if line.startswith(b"data:"):
            change = json.loads(line.removeprefix(b"data:"))
            seen.append((change["kind"], change["name"], change["state"]))
    assert ("job", str(job), "pending") in seen
    assert ("task", f"{job}.0", "succeeded") in seen
    connection.close()


# --- the definition ---------------------------------------------------------------------------------------------


@pytest.fixture
def defined(one: One) -> Iterator[One]:
    yield one
    one.client.put_definition(DefinitionPut(text="cluster: test\npools: {}\n", purge=True))
    for name in one.client.definition().queues:
        one.client.delete_entry("queues", name)
    wait_for(lambda: not list(one.client.hosts()), 20, "its hosts are gone")


def test_a_definition_is_planned_applied_and_then_changes_nothing(defined: One) -> None:
    client = defined.client
    text = POOLS + "logical_hosts:\n  small: {cpu: 1, memory: 64MiB}\n"
    planned = client.put_definition(DefinitionPut(text=text), dry_run=True)
    assert planned.changed and [h.state for h in planned.hosts] == ["planned"]
    assert client.definition().version == planned.version - 1
    assert client.plan(DefinitionPut(text=text)).hosts[0].anchor == "n1", planned.hosts[0].reason
    applied = client.put_definition(DefinitionPut(text=text))
    assert applied.changed and applied.version == planned.version
    again = client.put_definition(DefinitionPut(text=text))
    assert (again.changed, again.version) == (False, applied.version)
    wait_for(lambda: client.host("small").state == "composed", 20, "the host is there")
    job = defined.submit("/bin/sh", "-c", "echo $LAVALITE_HOST", host="small", request=Request(cpu_milli=500))
    assert defined.ended(job).state == "succeeded"
    assert b"".join(client.output(job)) == b"small\n"
    without = client.put_definition(DefinitionPut(text=POOLS))
    assert "small" in without.after["logical_hosts"], "what is no more in it stays, without purge"
    purged = client.put_definition(DefinitionPut(text=POOLS, purge=True))
    assert "small" not in purged.after["logical_hosts"]
    wait_for(lambda: not list(client.hosts()), 20, "the host is gone")


def _preempting(one: One, mode: str) -> None:
    """A logical host of half a core, and two queues, of which the upper one preempts the lower one there."""
    one.client.put_definition(
        DefinitionPut(
            text="cluster: test\npools:\n  general: {nodes: '*', kinds: [cpu, memory], default: true}\n"
            "logical_hosts:\n  desk: {cpu: 0.5}\n"
            f"queues:\n  low: {{priority: 1, default: true}}\n  top: {{priority: 2, preemption: {mode}}}\n"
        )
    )
    wait_for(lambda: one.client.host("desk").state == "composed", 20, "the host is there")


def _without_hosts(one: One) -> None:
    one.client.put_definition(DefinitionPut(text=POOLS, purge=True))
    wait_for(lambda: not list(one.client.hosts()), 20, "its host is gone")


def _process_state(pid: int) -> str:
    """`T` is stopped; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_processes_are_suspended_for_a_higher_queue_and_go_on_after_it(defined: One) -> None:
    _preempting(defined, "suspend")
    half = {"host": "desk", "request": Request(cpu_milli=500)}
    low = defined.submit("/bin/sh", "-c", "echo $$; sleep 600", queue="low", **half)
    defined.reach(low, "running")
    text = wait_for(lambda: b"".join(defined.client.output(low)).strip(), 10, "it said its pid")
    pid = int(text)
    assert _process_state(pid) == "S"
    top = defined.submit(*SLEEP, queue="top", **half)
    defined.reach(top, "running")
    assert defined.client.job(low).state == "suspended" and _process_state(pid) == "T"
    with pytest.raises(ConflictError, match="goes on by itself"):
        defined.client.resume(low)
    (task,) = defined.client.tasks(low)
    assert (task.reason, task.preemptions) == (f"preempted for job {top} of queue top", 1)
    held = {c.owner: {s["kind"]: s["amount"] for s in c.shares} for c in defined.client.commitments()}
    assert "cpu" not in held[f"job/{low}/0"] and held[f"job/{top}/0"] == {"cpu": 500}
    defined.client.cancel(top)
    defined.reach(low, "running")
    wait_for(lambda: _process_state(pid) == "S", 10, "its processes go on")
    defined.client.cancel(low)
    assert defined.ended(low).state == "cancelled" and _process_state(pid) == ""
    _without_hosts(defined)


def test_a_signal_of_the_queues_is_heard_before_it_is_killed(defined: One) -> None:
    _preempting(defined, "{mode: requeue, signal: SIGUSR1, grace: 20s}")
    half = {"host": "desk", "request": Request(cpu_milli=500)}
    script = "trap 'echo saved; exit 9' USR1; echo begun; while :; do sleep 0.1; done"
    low = defined.submit("/bin/sh", "-c", script, queue="low", rerunnable=True, **half)
    defined.reach(low, "running")
    wait_for(lambda: b"begun" in b"".join(defined.client.output(low)), 20, "it hears signals")
    top = defined.submit(*SLEEP, queue="top", **half)
    defined.reach(top, "running")
    assert b"saved" in b"".join(defined.client.output(low))
    (task,) = defined.client.tasks(low)
    assert (task.state, task.reason) == ("pending", f"preempted for job {top} of queue top")
    for job in (low, top):
        defined.client.cancel(job)
        defined.ended(job)
    _without_hosts(defined)


def test_a_gang_of_which_a_task_has_ended_is_not_requeued_silently(one: One) -> None:
    with open_folder() as folder:
        folder.chmod(0o755)
        script = f"mkdir {folder}/first 2>/dev/null && exit 0; sleep 600"
        fields = {"array": Array(first=1, last=2), "gang": Gang(), "request": Request(cpu_milli=10)}
        job = one.submit("/bin/sh", "-c", script, **fields)
        wait_for(lambda: one.client.job(job).counts.get("succeeded") == 1, 20, "one of them has ended")
        with pytest.raises(ConflictError, match="begin anew together or not at all"):
            one.client.requeue(job)


def test_a_job_with_parts_starts_together_and_each_task_knows_its_part(one: One) -> None:
    small = Request(cpu_milli=10)
    show = 'echo "$LAVALITE_TASK $LAVALITE_PART $LAVALITE_PART_INDEX $LAVALITE_NODES_ps $LAVALITE_NODES_worker"'
    parts = [
        Part(name="ps", request=small, command=["/bin/sh", "-c", f"{show} serves"]),
        Part(name="worker", tasks=2, request=Request(cpu_milli=20)),
    ]
    job = one.submit("/bin/sh", "-c", show, parts=parts)
    done = one.ended(job)
    assert (done.state, done.tasks, [part["name"] for part in done.parts]) == ("succeeded", 3, ["ps", "worker"])
    assert [task.part for task in one.client.tasks(job)] == ["ps", "worker", "worker"]
    assert [b"".join(one.client.output(job, task=n)).decode() for n in range(3)] == [
        "0 ps 0 n1:1 n1:2 serves\n",
        "1 worker 0 n1:1 n1:2\n",
        "2 worker 1 n1:1 n1:2\n",
    ]
    waits = one.submit(parts=[Part(name="a", request=small), Part(name="b", request=small)], hold=True)
    assert one.client.explain(waits).asks == "1 × a (0.01 cpu), 1 × b (0.01 cpu)"
    for wrong, said in (
        ({"parts": []}, "here are none"),
        ({"parts": [{"name": "a", "size": 1}, {"name": "b"}]}, "size"),
    ):
        status, error = one.raw("POST", "/v1/jobs", {"jobs": [{"spec": {"command": ["true"], **wrong}}]})
        assert status == 400 and said in str(error)


def test_hosts_have_a_tag_that_changes_with_them_and_fields_that_one_asks_for(defined: One) -> None:
    client, hosts = defined.client, "/v1/hosts?fields=anchor,parts"
    client.put_definition(DefinitionPut(text=POOLS + "logical_hosts:\n  h: {count: 3, cpu: 0.001, memory: 8MiB}\n"))
    wait_for(lambda: [h.state for h in client.hosts()] == ["composed"] * 3, 20, "the hosts are there")

    def tag_of(path: str) -> str:
        connection = UnixHttp(defined.socket)
        connection.request("GET", path)
        return str(connection.getresponse().headers["ETag"])

    tag, used, pools = tag_of(hosts), tag_of("/v1/hosts"), tag_of("/v1/pools")
    assert tag == tag_of(hosts + "&limit=1&cursor=h-1"), "it speaks for the whole collection"
    status, page = defined.raw("GET", hosts + "&limit=2", None)
    assert (status, page["next_cursor"], len(page["items"])) == (200, "h-2", 2)
    assert sorted(page["items"][0]) == ["anchor", "name", "parts", "state"]
    job = defined.submit(*SLEEP, host="h-1", request=Request(cpu_milli=1))
    defined.reach(job, "running")
    assert defined.raw("GET", hosts, None, **{"If-None-Match": tag}) == (304, None)
    assert defined.raw("GET", hosts, None, **{"If-None-Match": f'"x", W/{tag}'}) == (304, None)
    for path, known in (("/v1/hosts", used), ("/v1/pools", pools)):
        assert defined.raw("GET", path, None, **{"If-None-Match": known})[0] == 200, "the job uses some of it"
    client.cancel(job)
    defined.ended(job)
    assert defined.raw("GET", "/v1/pools", None, **{"If-None-Match": tag_of("/v1/pools")}) == (304, None)
    client.put_definition(DefinitionPut(text=POOLS, purge=True))
    assert defined.raw("GET", hosts, None, **{"If-None-Match": tag})[0] == 200
    status, error = defined.raw("GET", "/v1/hosts?fields=name,colour", None)
    assert (status, error["errors"][0]["field"]) == (400, "fields")


def test_the_definition_is_read_and_changed_by_version(defined: One) -> None:
    client = defined.client
    version = client.put_definition(DefinitionPut(text=POOLS)).version
    assert defined.raw("GET", "/v1/definition", None, **{"If-None-Match": f'"{version}"'}) == (304, None)
    status, body = defined.raw("GET", "/v1/definition", None, **{"If-None-Match": '"0"'})
    assert (status, body["version"]) == (200, version)
    entry = EntryPut(spec={"priority": 9, "policy": "first-fit"}, if_version=version)
    assert client.put_entry("queues", "fast", entry, dry_run=True).changed
    put = client.put_entry("queues", "fast", entry)
    assert put.changed and put.version == version + 1
    with pytest.raises(ConflictError, match=f"at version {version + 1}, not {version}"):
        client.put_entry("queues", "fast", entry)
    with pytest.raises(ConflictError, match="at version"):
        client.delete_entry("queues", "fast", if_version=version)
    with pytest.raises(ConflictError, match="at version"):
        client.put_definition(DefinitionPut(text=POOLS), if_version=version)
    assert defined.raw("DELETE", f"/v1/queues/fast?if_version={version}")[0] == 412
    assert client.queue("fast").priority == 9
    kept = client.put_definition(DefinitionPut(text=POOLS, purge=True))
    assert "fast" in kept.after["queues"], "purge takes only what the document itself had put"
    assert client.delete_entry("queues", "fast", if_version=kept.version).changed
    with pytest.raises(UnknownNameError):
        client.delete_entry("queues", "fast")
    for bad in ("\ud800", float("nan")):
        assert defined.raw("PUT", "/v1/queues/worse", {"spec": {"priority": 9, "policy": bad}})[0] == 400


def test_all_faults_of_a_document_are_told_at_once(defined: One) -> None:
    text = "cluster: test\npools:\n  p: {nodes: '*', kinds: [cpu, memry]}\nqueues:\n  q: {priority: high}\n"
    status, answer = defined.raw("PUT", "/v1/definition", {"text": text, "file": "my.yml"})
    assert status == 400
    assert [(e["file"], e["line"]) for e in answer["errors"]] == [("my.yml", 3), ("my.yml", 5)]
    with pytest.raises(InputError, match="is for cluster other"):
        defined.client.put_definition(DefinitionPut(text=POOLS.replace("cluster: test", "cluster: other")))


def test_a_long_document_stops_nobody(defined: One) -> None:
    """Reading it takes seconds; the scheduler goes on meanwhile, and stays the leader."""
    pid = defined.cluster.scheduler_pid(defined.lim)
    hosts = "".join(f"  h{n}: {{cpu: 1, memory: 64MiB, limits: {{memory: 64MiB}}}}\n" for n in range(12_000))
    answers: list[tuple[int, Any]] = []
    long = threading.Thread(
        target=lambda: answers.append(defined.raw("POST", "/v1/plan", {"text": POOLS + "logical_hosts:\n" + hosts}))
    )
    long.start()
    while long.is_alive():
        assert defined.raw("GET", "/v1/jobs?limit=1")[0] == 200
        long.join(0.05)
    assert answers[0][0] == 200
    assert len(answers[0][1]["hosts"]) == 12_000
    assert defined.cluster.scheduler_pid(defined.lim) == pid


# --- who may what -----------------------------------------------------------------------------------------------


@pytest.fixture
def api_token(one: One) -> str:
    granted = asyncio.run(one.lim.ask(AskToken(audience="api")))
    assert isinstance(granted, Granted)
    return granted.token


def test_over_tcp_a_token_is_demanded(one: One, api_token: str) -> None:
    status, answer = one.over_tcp("GET", "/v1/status")
    assert (status, answer["errors"][0]["code"]) == (401, "not_authenticated")
    assert one.over_tcp("GET", "/v1/status", api_token)[0] == 200
    with Client([Target(one.api_url, api_token)]) as client:
        assert client.status().cluster == "test"
    with Client([Target(one.api_url)]) as client, pytest.raises(RefusedError, match="LAVALITE_TOKEN"):
        client.status()


def test_other_tokens_are_refused(one: One, api_token: str) -> None:
    agents = asyncio.run(one.lim.ask(AskToken(audience="mbatchd")))
    assert isinstance(agents, Granted)
    middle = len(api_token) // 2
    tampered = api_token[:middle] + ("A" if api_token[middle] != "A" else "B") + api_token[middle + 1 :]
    for token in (agents.token, tampered, api_token + "x", "nonsense", "v4.public." + "A" * 5000):
        status, answer = one.over_tcp("GET", "/v1/status", token)
        assert (status, answer["errors"][0]["code"]) == (401, "not_authenticated")
    assert one.over_tcp("POST", "/v1/jobs", "", b"{" * 100)[0] == 401, "a stranger's body is not even read"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_has_their_own_jobs_alone(one: One) -> None:
    mine = one.submit(*SLEEP)
    status, submitted = one.as_nobody(
        "POST",
        "/v1/jobs",
        {"jobs": [{"spec": {"command": ["/bin/sh", "-c", "id -u; sleep 600"], "uid": 0, "user": "root"}}]},
    )
    assert status == 201, submitted
    theirs = submitted["ids"][0]
    assert one.client.job(theirs).user == "nobody"
    assert one.client.job(theirs).group == grp.getgrgid(NOBODY).gr_name
    foreign = {"jobs": [{"spec": {"command": ["true"], "group": grp.getgrgid(0).gr_name}}]}
    status, answer = one.as_nobody("POST", "/v1/jobs", foreign)
    assert (status, answer["errors"][0]["field"]) == (400, "group"), answer
    one.reach(theirs, "running")
    wait_for(lambda: b"".join(one.client.output(theirs)) == b"65534\n", 20, "it runs as nobody")
    assert one.as_nobody("GET", f"/v1/jobs/{theirs}/output") == (200, 65534)
    assert one.as_nobody("GET", f"/v1/jobs/{mine}")[0] == 200
    for method, path, body in [
        ("POST", f"/v1/jobs/{mine}/cancel", {}),
        ("POST", f"/v1/jobs/{mine}/hold", None),
        ("GET", f"/v1/jobs/{mine}/output", None),
        ("POST", f"/v1/jobs/{theirs}/cancel", {"force": True}),
        ("PUT", "/v1/definition", {"text": POOLS}),
        ("PUT", "/v1/queues/q", {"spec": {"priority": 1}}),
        ("DELETE", "/v1/queues/q", None),
        ("POST", "/v1/nodes/n1/drain", None),
    ]:
        status, answer = one.as_nobody(method, path, body)
        assert (status, answer["errors"][0]["code"]) == (403, "not_allowed"), (method, path, answer)
    assert one.as_nobody("PUT", "/v1/definition?dry_run=true", {"text": POOLS})[0] == 200
    assert one.as_nobody("POST", f"/v1/jobs/{theirs}/cancel", {})[0] == 200
    assert one.ended(theirs).state == "cancelled"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_job_of_another_user_runs_as_that_user(one: One) -> None:
    with open_folder() as shared:
        shared.chmod(0o777)
        spec = {"command": ["/bin/sh", "-c", "touch made"], "cwd": str(shared), "stdout_path": "said"}
        status, submitted = one.as_nobody("POST", "/v1/jobs", {"jobs": [{"spec": spec}]})
        assert status == 201, submitted
        assert one.ended(submitted["ids"][0]).state == "succeeded"
        assert {p.name: (p.stat().st_uid, p.stat().st_gid) for p in shared.iterdir()} == {
            "made": (NOBODY, NOBODY),
            "said": (NOBODY, NOBODY),
        }


# --- what is asked wrongly --------------------------------------------------------------------------------------


def test_errors_have_one_shape(one: One) -> None:
    def faults(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, list[Any]]:
        status, answer = one.raw(method, path, body, **headers)
        assert set(answer["errors"][0]) == {"code", "message", "field", "hint", "file", "line"}, answer
        return status, [(e["code"], e["field"]) for e in answer["errors"]]

    assert faults("GET", "/nowhere") == (404, [("no_such_path", "")])
    assert faults("GET", "/v1/jobs/999999") == (404, [("unknown_name", "job")])
    assert faults("GET", "/v1/nodes/x") == (404, [("unknown_name", "node")])
    assert faults("GET", "/v1/jobs/abc") == (400, [("bad_input", "job_id")])
    assert faults("GET", "/v1/jobs?limit=1001") == (400, [("bad_input", "limit")])
    assert faults("POST", "/v1/status")[0] == 405
    assert faults("POST", "/v1/jobs", b"{") == (400, [("bad_input", "")])
    assert faults("POST", "/v1/jobs", {"jobs": [], "more": 1}) == (
        400,
        [("bad_input", "jobs"), ("bad_input", "more")],
    )
    assert faults("POST", "/v1/jobs", b"[" * 200_000)[0] == 400
    assert faults("POST", "/v1/jobs", b"\xff\xfe")[0] == 400
    assert faults("POST", "/v1/jobs/1/dance")[0] == 400
    assert faults("PUT", "/v1/definition", {"text": POOLS}, **{"If-Match": "x"})[0] == 400
    assert one.raw("GET", "/v1/status")[0] == 200


def test_too_much_is_not_read(one: One) -> None:
    status, answer = one.raw("POST", "/v1/jobs", b"", **{"Content-Length": str(2**30)})
    assert (status, answer["errors"][0]["code"]) == (413, "too_long")

    def unmarked() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 2**20

    connection = UnixHttp(one.socket)
    try:
        connection.request("POST", "/v1/jobs", unmarked(), {"Content-Type": "application/json"})
    except BrokenPipeError:
        pass  # cut off while sending: right as well
    else:
        assert connection.getresponse().status == 413
    finally:
        connection.close()
    assert one.raw("GET", "/v1/status")[0] == 200


def test_a_probe_needs_no_token_to_find_the_scheduler(one: One) -> None:
    status, told = one.over_tcp("GET", "/status")
    assert (status, told["lim"], told["mbatchd"]) == (200, "master", "running")


def test_the_api_describes_itself(one: One) -> None:
    status, described = one.over_tcp("GET", "/v1/openapi.json")
    assert status == 200
    assert {"/v1/jobs", "/v1/definition", "/v1/quarantine"} <= described["paths"].keys()
    for path in ("nodes", "pools", "queues", "hosts", "jobs", "commitments", "quarantine"):
        status, page = one.raw("GET", f"/v1/{path}")
        assert status == 200 and set(page) == {"items", "next_cursor"}, path


def test_a_drained_node_takes_nothing_until_it_is_resumed(one: One) -> None:
    one.client.drain("n1", "for a test")
    job = one.submit("true")
    assert wait_for(lambda: one.client.job(job).why, 10, "it says why it waits")
    assert one.client.node("n1").state == "drained"
    one.client.undrain("n1")
    assert one.ended(job).state == "succeeded"


def test_a_drain_with_a_deadline_ends_what_runs_and_what_may_starts_again(one: One) -> None:
    asks = Request(cpu_milli=100)
    once, again = one.submit(*SLEEP, request=asks), one.submit(*SLEEP, request=asks, rerunnable=True)
    one.reach(once, "running")
    one.reach(again, "running")
    foretold = one.client.drain("n1", "new disk", deadline_seconds=0, dry_run=True)
    assert foretold.drain and foretold.state == "drained" and one.client.node("n1").drain is None
    drained = one.client.drain("n1", "new disk", deadline_seconds=0)
    assert drained.drain and (drained.drain.reason, drained.drain.deadline_seconds) == ("new disk", 0)
    assert one.client.drain("n1", deadline_seconds=0).drain == drained.drain
    assert one.ended(once).state == "failed"
    assert next(iter(one.client.tasks(once))).reason.startswith("drained: ")
    one.reach(again, "pending")
    assert one.client.undrain("n1").drain is None
    one.reach(again, "running")


def test_labels_that_a_person_gives_are_selected_by_and_those_that_are_none_are_refused(one: One) -> None:
    labelled = one.client.label("n1", {"row": ["a", "b"]})
    assert labelled.operator_labels == {"row": ["a", "b"]} == {"row": labelled.labels["row"]}
    for selector, found in (('{"row": "b"}', 1), ('{"row": "c"}', 0), ("n[1:4]", 1), ("m*", 0)):
        status, page = one.raw("GET", f"/v1/nodes?selector={quote(selector)}")
        assert (status, len(page["items"])) == (200, found), page
    status, refused = one.raw("GET", "/v1/nodes?selector=" + quote("{row"))
    assert (status, refused["errors"][0]["field"]) == (400, "selector")
    with pytest.raises(LavaLiteError, match="those of the inventory"):
        one.client.label("n1", {"group": ["x"]})
    assert one.client.label("n1", {"row": None}).operator_labels == {}


def test_recent_changes_are_read_on_from_a_cursor(one: One) -> None:
    cursor = one.raw("GET", "/v1/events/recent?since=now")[1]["cursor"]
    one.client.drain("n1")
    one.client.undrain("n1")
    status, page = one.raw("GET", f"/v1/events/recent?since={cursor}&kind=node&name=n1&limit=1&wait_seconds=10")
    assert (status, [c["state"] for c in page["items"]], page["missed"]) == (200, ["drained"], False)
    page = one.raw("GET", f"/v1/events/recent?since={page['cursor']}&kind=node")[1]
    assert [c["state"] for c in page["items"]] == ["resumed"]
