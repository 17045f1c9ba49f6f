"""What modules ask of the API and what they make of its answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.lavalite.cluster.plugins.module_utils import _amounts
from ansible_collections.lavalite.cluster.plugins.module_utils._client import Client
from ansible_collections.lavalite.cluster.plugins.module_utils._entries import apply_entry
from ansible_collections.lavalite.cluster.plugins.module_utils._errors import ApiError
from ansible_collections.lavalite.cluster.plugins.module_utils._hosts import made_of
from ansible_collections.lavalite.cluster.plugins.module_utils._jobspec import key_prefix, spec_of
from ansible_collections.lavalite.cluster.plugins.module_utils._waiting import unsettled_sentence
from ansible_collections.lavalite.cluster.plugins.modules import definition, job, logical_host
from hypothesis import given
from hypothesis import strategies as st

from lavalite.base.errors import InputError
from lavalite.model import amounts
from lavalite.model.job import JobSpec

JOB = {"name": "nightly", "command": ["true"], "wait": False, "output": False, "timeout": 60}

TYPED = st.one_of(
    st.from_regex(r"\A[0-9]{1,4}(\.[0-9]{1,3})?(KiB|MiB|GiB|TiB|kB|GB|B|bit/s|Gbit/s|m|h|s|d)?\Z"),
    st.from_regex(r"\A([0-9]{1,2}[wdhms]){1,3}\Z"),
    st.text(max_size=6),
)


@given(TYPED)
def test_amounts_are_read_as_the_package_reads_them(text: str) -> None:
    pairs = [
        (_amounts.milli, amounts.parse_cpu),
        (_amounts.byte_count, amounts.parse_bytes),
        (_amounts.bits_per_second, amounts.parse_bandwidth),
        (_amounts.seconds, amounts.parse_duration),
    ]
    for ours, theirs in pairs:
        try:
            found: int | None = ours(text, "x")
        except ValueError:
            found = None
        try:
            wanted: int | None = theirs(text)
        except InputError:
            wanted = None
        assert found is None or found == wanted, (ours.__name__, text)
        if wanted is not None and text.isascii() and text == text.strip() and text[0] not in "+-":
            assert found == wanted, (ours.__name__, text)


@given(st.sampled_from(["cpu", "memory", "gpu", "storage", "network", "matlab"]), st.integers(0, 2**53))
def test_amounts_are_shown_as_the_package_shows_them(kind: str, amount: int) -> None:
    for each in (amount, amount % 5000, amount >> 20 << 20, amount // 10**6 * 10**6):
        assert _amounts.shown(kind, each) == amounts.format_amount(kind, each)


def test_a_spec_is_one_that_the_api_takes() -> None:
    params = JOB | {
        "array": "1-9:2",
        "cpu": "0.5",
        "memory": "2GiB",
        "walltime": "1h30m",
        "grace": "90s",
        "start_within": "10m",
        "depends": [{"job": 4, "kind": "ended"}],
        "environment": {"A": 1},
        "gpu": "2",
        "gpu_topology": "nvlink",
        "exclusive": True,
        "affinity": [
            {"job": None, "name": "db", "group": None, "labels": None, "anti": False, "within": "rack", "weight": 30},
            {"labels": {"rack": "r1", "disk": ["ssd", 2]}, "anti": True},
        ],
        "host": None,
    }
    spec = JobSpec.model_validate(spec_of(params) | {})
    assert list(spec.indices()) == [1, 3, 5, 7, 9]
    assert (spec.request.cpu_milli, spec.request.memory_bytes, spec.walltime_seconds) == (500, 2 * 1024**3, 5400)
    assert (spec.grace_seconds, spec.start_within_seconds) == (90, 600)
    assert spec.environment == {"A": "1"}
    assert spec.depends[0].job == 4
    assert (spec.request.gpu_topology, spec.request.gpu_mig, spec.request.exclusive) == ("nvlink", "", True)
    assert key_prefix(spec_of(JOB | {"exclusive": False})) == key_prefix(spec_of(JOB))  # as before there was such
    assert [term.text() for term in spec.affinity] == [
        "rather near jobs named db within one rack (30)",
        "not on nodes {rack: r1, disk: [ssd, 2]}",
    ]


@pytest.mark.parametrize("wrong", [{"array": "8-"}, {"memory": "2 gigs"}, {"cpu": "many"}, {"walltime": "soon"}])
def test_a_wrong_option_is_named(wrong: dict[str, str]) -> None:
    with pytest.raises(ApiError, match=f"{next(iter(wrong))}: .* is not understood"):
        job.present(Client(urls=["http://unused"]), JOB | wrong, False)


def test_a_job_with_parts_is_as_its_page_says() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/parts.md").read_text()
    block = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert block is not None
    options: dict[str, Any] = yaml.safe_load(block[1])[0]["lavalite.cluster.job"]
    spec = JobSpec.model_validate(spec_of(options), extra="forbid")
    assert [(part.name, part.tasks, part.command) for part in spec.parts or ()] == [
        ("ps", 1, ["serve"]),
        ("worker", 4, None),
    ]
    assert [spec.at(n).request.amounts() for n in (0, 1)] == [
        {"cpu": 4000, "memory": 2 * 1024**3},
        {"cpu": 2000, "gpu": 4000 // 4},
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cpu": "2"}, "parts and cpu exclude each other"),
        ({"array": "1-3"}, "parts and array exclude each other"),
        ({"floating": {"matlab": 1}}, "parts and floating exclude each other"),
        ({"parts": [{"name": "a", "cpu": "many"}, {"name": "b"}]}, "parts, a: cpu: .* is not understood"),
        ({"parts": [{"name": "a"}, {"name": "b", "memory": "0"}]}, "parts, b: memory"),
    ],
)
def test_a_wrong_part_is_named(wrong: dict[str, Any], said: str) -> None:
    parts = {"parts": [{"name": "a"}, {"name": "b", "tasks": 2}]}
    with pytest.raises(ApiError, match=said):
        job.present(Client(urls=["http://unused"]), JOB | parts | wrong, False)


class Jobs:
    """Enough of /v1/jobs to submit to."""

    def __init__(self, api: Any) -> None:
        self.jobs: list[dict[str, Any]] = []
        api.answer = self.answer
        self.client = Client(urls=[api.url])

    def answer(self, method: str, path: str, query: str, body: Any) -> Any:
        if method == "GET" and path == "/v1/jobs":
            return 200, {}, {"items": self.jobs, "next_cursor": None}
        if method == "GET":
            return 200, {}, self.jobs[int(path.rpartition("/")[2]) - 1]
        if path.endswith("/cancel"):
            self.jobs[int(path.split("/")[3]) - 1]["state"] = "cancelled"
            return 200, {}, {}
        if "dry_run" in query:
            return 201, {}, {"ids": []}
        asked = body["jobs"][0]
        self.jobs.append(
            {"id": len(self.jobs) + 1, "name": asked["spec"]["name"], "state": "running", "key": asked["key"]}
        )
        return 201, {}, {"ids": [len(self.jobs)]}


def test_the_same_job_is_submitted_once_and_again_only_when_it_failed(api: Any) -> None:
    jobs = Jobs(api)
    first = job.present(jobs.client, JOB, False)
    assert (first["changed"], first["id"]) == (True, 1)
    for state in ("running", "succeeded"):
        jobs.jobs[0]["state"] = state
        again = job.present(jobs.client, JOB, False)
        assert (again["changed"], again["id"]) == (False, 1)
    jobs.jobs[0]["state"] = "failed"
    assert job.present(jobs.client, JOB, False)["id"] == 2
    assert jobs.jobs[0]["key"] != jobs.jobs[1]["key"]
    assert job.present(jobs.client, JOB | {"cpu": "2"}, False)["id"] == 3


def test_check_mode_submits_and_cancels_nothing(api: Any) -> None:
    jobs = Jobs(api)
    assert job.present(jobs.client, JOB, True)["changed"] is True
    assert jobs.jobs == []
    job.present(jobs.client, JOB, False)
    assert job.cancelled(jobs.client, JOB, True) | {"diff": 0} == {"changed": True, "cancelled": [1], "diff": 0}
    assert jobs.jobs[0]["state"] == "running"


def test_cancelling_twice_changes_once(api: Any) -> None:
    jobs = Jobs(api)
    job.present(jobs.client, JOB, False)
    assert job.cancelled(jobs.client, JOB, False)["changed"] is True
    assert job.cancelled(jobs.client, JOB, False)["changed"] is False


def test_keys_differ_with_the_spec_and_fit() -> None:
    one, other = spec_of(JOB), spec_of(JOB | {"queue": "short"})
    assert key_prefix(one) == key_prefix(spec_of(dict(JOB)))
    assert key_prefix(one) != key_prefix(other)
    assert len(key_prefix(one)) + 20 < 128


def test_check_mode_is_a_dry_run_and_the_diff_is_the_entrys(api: Any) -> None:
    before = {"pools": {"a": {"kinds": ["cpu"]}, "b": {}}}
    after = {"pools": {"a": {"kinds": ["gpu"]}, "b": {}}}
    api.answer = lambda *_: (200, {}, {"changed": True, "version": 2, "before": before, "after": after})
    params = {"name": "a", "state": "present", "spec": {"kinds": ["gpu"]}}
    result = apply_entry(Client(urls=[api.url]), params, True, "pools", "pools")
    assert api.asked[0][:2] == ("PUT", "/v1/pools/a?dry_run=true")
    assert result["diff"]["before"] == {"a": {"kinds": ["cpu"]}}
    assert result["diff"]["after"] == {"a": {"kinds": ["gpu"]}}


def test_what_is_absent_already_is_not_deleted(api: Any) -> None:
    api.answer = lambda *_: (200, {}, {"version": 1, "pools": {"b": {}}})
    params = {"name": "a", "state": "absent", "spec": None}
    assert apply_entry(Client(urls=[api.url]), params, False, "pools", "pools")["changed"] is False
    assert [asked[0] for asked in api.asked] == ["GET"]


CIRCUIT = {"id": "a/n03", "provider": "n03", "bits_per_second": 10**9, "links": ["link/n01/r1", "link/n03/r1"]}
ANALYTICS: dict[str, Any] = {
    "name": "a",
    "state": "composed",
    "anchor": "n01",
    "parts": [
        {"id": "1", "kind": "cpu", "amount": 1500, "provider": "n01", "devices": ["0"]},
        {"id": "2", "kind": "memory", "amount": 128 << 20, "provider": "n03", "circuit": "a/n03"},
        {"id": "3", "kind": "storage", "amount": 10**12, "provider": "n04", "circuit": "a/n04"},
    ],
    "circuits": [CIRCUIT],
    "degraded": ["3"],
}
MADE_OF = [
    "anchored on n01",
    "cpu 1.5",
    "memory 128MiB of n03 by circuit 1Gbit/s over link/n01/r1 link/n03/r1",
    "storage 1TB of n04 by circuit a/n04, lost",
]


def test_what_a_host_is_made_of_is_said_in_lines() -> None:
    assert made_of(ANALYTICS) == MADE_OF
    assert made_of(ANALYTICS | {"executor": "vm", "parts": []}) == ["a virtual machine on n01"]
    assert made_of({"name": "a", "anchor": "", "reason": "no node has 9 cpu"}) == ["nowhere yet: no node has 9 cpu"]
    assert made_of({"name": "a"}) == []


class Hosts:
    """Enough of /v1 for one entry under logical_hosts and its hosts."""

    def __init__(self, api: Any) -> None:
        self.entries: dict[str, Any] = {"a": {"cpu": 1}}
        self.hosts: dict[str, dict[str, Any]] = {"a": ANALYTICS | {"drained": False}}
        self.would_be = dict(ANALYTICS)
        self.looks_until_free = 0
        self.posts: list[str] = []
        api.answer = self.answer
        self.client = Client(urls=[api.url])

    def answer(self, method: str, path: str, query: str, body: Any) -> Any:
        kind, _slash, name = path.removeprefix("/v1/").partition("/")
        if kind == "definition" and method == "GET":
            return 200, {}, {"version": 1, "logical_hosts": self.entries}
        if method == "POST":
            self.posts.append(path)
            host, _slash, verb = name.partition("/")
            self.hosts[host] = self.hosts[host] | {"drained": verb == "drain"}
            return 200, {}, self.hosts[host]
        if method == "PUT":
            section = {"logical_hosts": {"a": body.get("spec")}}
            before = {"logical_hosts": self.entries}
            return (
                200,
                {},
                {"changed": True, "version": 2, "before": before, "after": section, "hosts": [self.would_be]},
            )
        if not name:
            return 200, {}, {"items": list(self.hosts.values()), "next_cursor": None}
        if name not in self.hosts:
            return 404, {}, {"errors": [{"code": "unknown_name", "message": f"there is no host {name}"}]}
        self.looks_until_free -= 1
        return 200, {}, self.hosts[name] | {"resources": {"cpu": {"committed": 500 * (self.looks_until_free > 0)}}}


HOST = {"name": "a", "state": "present", "spec": {"cpu": 2}, "wait": False, "timeout": 5}


def test_the_diff_of_a_host_says_what_it_is_made_of_and_would_be(api: Any) -> None:
    hosts = Hosts(api)
    hosts.would_be["parts"] = ANALYTICS["parts"][:1]
    diff = logical_host.apply(hosts.client, HOST, True, True)["diff"]
    assert diff["before"] == {"a": {"cpu": 1}, "a has": MADE_OF}
    assert diff["after"] == {"a": {"cpu": 2}, "a has": MADE_OF[:2]}
    assert "a has" not in logical_host.apply(hosts.client, HOST, True)["diff"]["after"]


def test_the_diff_of_a_definition_says_what_all_hosts_are_made_of_and_would_be(api: Any) -> None:
    hosts = Hosts(api)
    hosts.hosts["b"] = {"name": "b", "state": "composed", "anchor": "n02", "parts": []}
    hosts.would_be["parts"] = ANALYTICS["parts"][:1]
    params = {"path": None, "content": "x", "file": "p.yml", "purge": False, "wait": False, "timeout": 5}
    diff = definition.apply(hosts.client, params, True, True)["diff"]
    assert diff["before"]["hosts"] == {"a": MADE_OF, "b": ["anchored on n02"]}
    assert diff["after"]["hosts"] == {"a": MADE_OF[:2], "b": ["anchored on n02"]}
    purged = definition.apply(hosts.client, params | {"purge": True}, True, True)["diff"]
    assert purged["after"]["hosts"] == {"a": MADE_OF[:2]}
    assert "hosts" not in definition.apply(hosts.client, params, True)["diff"]["after"]


def test_only_a_host_that_is_there_is_resized(api: Any) -> None:
    hosts = Hosts(api)
    assert logical_host.apply(hosts.client, HOST | {"state": "resized"}, False)["changed"] is True
    hosts.entries = {}
    with pytest.raises(ApiError, match=r"name: there is no logical host a to resize. Write state: present"):
        logical_host.apply(hosts.client, HOST | {"state": "resized"}, True)


def test_a_drained_host_is_waited_for_and_taken_back(api: Any) -> None:
    hosts = Hosts(api)
    drained, active = HOST | {"state": "drained", "wait": True}, HOST | {"state": "active"}
    foretold = logical_host.apply(hosts.client, drained, True)
    assert (foretold["changed"], hosts.posts) == (True, [])
    hosts.looks_until_free = 4
    done = logical_host.apply(hosts.client, drained, False)
    assert (done["changed"], done["diff"]) == (True, foretold["diff"])
    assert hosts.posts == ["/v1/hosts/a/drain"] and hosts.looks_until_free < 1
    assert logical_host.apply(hosts.client, drained, False)["changed"] is False
    assert logical_host.apply(hosts.client, active, False)["changed"] is True
    assert logical_host.apply(hosts.client, active, False)["changed"] is False
    assert hosts.posts == ["/v1/hosts/a/drain", "/v1/hosts/a/resume"]


def test_a_drained_host_on_which_work_runs_on_is_named(api: Any) -> None:
    hosts = Hosts(api)
    hosts.looks_until_free = 1000
    with pytest.raises(ApiError, match=r"a: jobs still run there after 0 s. Raise timeout"):
        logical_host.apply(hosts.client, HOST | {"state": "drained", "wait": True, "timeout": 0}, False)
    with pytest.raises(ApiError, match="there is no host b"):
        logical_host.apply(hosts.client, HOST | {"name": "b", "state": "drained"}, True)


def test_hosts_that_are_late_say_at_which_step_they_are() -> None:
    late = [
        {"name": "a", "state": "composing", "step": "attach", "reason": "n01 does not answer"},
        {"name": "b", "state": "planned"},
    ]
    kept = {"name": "d", "state": "composed", "reason": "jobs use more of it than it is to have"}
    without = {"name": "e", "state": "composed", "reason": "e/memory/n2 is lost", "degraded": ["e/memory/n2"]}
    said = unsettled_sentence([*late, {"name": "c", "state": "composed"}, kept, without])
    assert said == f"a is composing (attach): n01 does not answer; b is planned; d is composed: {kept['reason']}"


@pytest.mark.parametrize(
    ("spec", "names"), [({}, {"t"}), ({"count": 1}, {"t-1"}), ({"count": "2"}, {"t-1", "t-2"}), (None, {"t"})]
)
def test_the_hosts_of_an_entry(spec: Any, names: set[str]) -> None:
    assert logical_host.host_names("t", spec) == names


def test_a_definition_waits_until_its_hosts_are_composed_and_says_why_not(api: Any) -> None:
    hosts = [{"name": "a", "state": "composed"}, {"name": "b", "state": "failed", "reason": "no node has a GPU"}]

    def answer(method: str, *_: Any) -> Any:
        return 200, {}, {"changed": True, "version": 1, "hosts": hosts} if method == "PUT" else {"items": hosts}

    api.answer = answer
    params = {"path": None, "content": "x", "file": "p.yml", "purge": False, "wait": True, "timeout": 5}
    with pytest.raises(ApiError, match="b is failed: no node has a GPU"):
        definition.apply(Client(urls=[api.url]), params, False)
    assert definition.apply(Client(urls=[api.url]), params, True)["changed"] is True
    hosts[1] = {"name": "b", "state": "composed"}
    assert len(definition.apply(Client(urls=[api.url]), params, False)["hosts"]) == 2
