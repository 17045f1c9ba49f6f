"""A scenario, read and checked whole: every fault at once, each with file, line and field.

    SCENARIO.yml ──► read_scenario ──► Scenario ──► run
                         ▲ settings that are set or swept from the command line go over what stands in the file

One document: `pools`, `queues`, `links` and `logical_hosts` as in pools.yml; `nodes`, `jobs`, `traces`, `faults`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lavalite.base.config import read_text
from lavalite.base.errors import InputError
from lavalite.base.yamlfile import YamlText, read_yaml
from lavalite.control.events import Specs
from lavalite.model.pools import DEFINED, read_pools
from lavalite.model.pools_document import PoolsDocument, capacity_of
from lavalite.model.pools_faults import FaultList, did_you_mean, shown
from lavalite.model.specs import NodeCapacity
from lavalite.placement.registry import POLICIES
from lavalite.simulate.draws import Draw
from lavalite.simulate.entries import FaultEntry, JobsEntry, NodesEntry, ScenarioEntry, TraceEntry
from lavalite.simulate.traces import Trace, read_trace

Model = TypeVar("Model", bound=BaseModel)
ANY = "any"
_SECTIONS = ("nodes", "jobs", "traces", "faults")


@dataclass(slots=True)
class NodePlan:
    """A node that joins once, at a time that is drawn."""

    capacity: NodeCapacity
    joins: Draw


@dataclass(slots=True)
class Scenario:
    """What is to happen. Times are in seconds since the start."""

    file: str
    top: ScenarioEntry
    specs: Specs
    document: bytes = b"{}"
    nodes: list[NodePlan] = field(default_factory=list)
    jobs: dict[str, JobsEntry] = field(default_factory=dict)
    traces: list[Trace] = field(default_factory=list)
    faults: list[FaultEntry] = field(default_factory=list)

    @property
    def endless(self) -> bool:
        """Whether it does not end by itself."""
        return any(entry.endless for entry in self.jobs.values())


def read_scenario(path: FilePath, settings: Mapping[str, Any] | None = None) -> Scenario:
    """The scenario in the file. `settings` go over it, by dotted name (scenario.override). Raises InputError."""
    text, file = read_text(path), str(path)
    read = read_yaml(text, file)
    if not read.whole:
        raise InputError(faults=read.faults)
    for name, value in (settings or {}).items():
        _set(read.value, name, value)
    faults = FaultList(file, read.lines)
    scenario = _read(read, file, faults, path.parent)
    said = {fault.field for fault in read.faults}
    found = [*read.faults, *(fault for fault in faults.in_order() if fault.field not in said)]
    if scenario is None or found:
        raise InputError(faults=sorted(found, key=lambda fault: fault.line))
    return scenario


def _read(read: YamlText, file: str, faults: FaultList, folder: FilePath) -> Scenario | None:
    value = read.value
    if not isinstance(value, dict):
        faults.add("wrong_type", (), f"{shown(value)} is not a mapping", "Begin with nodes: and jobs:.")
        return None
    own = set(ScenarioEntry.model_fields)
    known = own | set(_SECTIONS) | set(DEFINED)
    for key in value:
        if key not in known:
            faults.add("unknown_key", (key,), "unknown key", did_you_mean(key, known))
    top = _entry(ScenarioEntry, {key: value[key] for key in value if key in own}, (), faults)
    pools = _pools(read, file, faults)
    nodes = _named(NodesEntry, "nodes", value, faults)
    jobs = _named(JobsEntry, "jobs", value, faults)
    told = _listed(TraceEntry, "traces", value, faults)
    happens = _listed(FaultEntry, "faults", value, faults)
    if top is None or pools is None:
        return None
    scenario = Scenario(file, top, Specs.of(pools), jobs=jobs, faults=list(happens.values()))
    for name, entry in nodes.items():
        for one in entry.names(name):
            scenario.nodes.append(NodePlan(capacity_of(one, entry), entry.joins))
    for at, trace in told.items():
        try:
            scenario.traces.append(read_trace(trace, folder))
        except InputError as error:
            faults.found += [fault if fault.file else _placed(fault, faults, at) for fault in error.faults]
    for trace_read in scenario.traces:
        scenario.nodes += [NodePlan(capacity, Draw("constant", 0.0)) for capacity in trace_read.nodes]
    _check(scenario, happens, pools, faults)
    return scenario


def _pools(read: YamlText, file: str, faults: FaultList) -> PoolsDocument | None:
    """What pools.yml would say."""
    sections = {key: read.value[key] for key in DEFINED if key in read.value}
    typed = {"plugin": "lavalite.cluster.pools", "cluster": "simulated", **sections}
    document, found = read_pools(YamlText(typed, read.lines, [], whole=True), file, lambda document: None)
    faults.found += found
    return document


def _check(scenario: Scenario, happens: Mapping[int, FaultEntry], pools: PoolsDocument, faults: FaultList) -> None:
    """What must hold between entries."""
    names = [plan.capacity.name for plan in scenario.nodes]
    if not names:
        faults.add("missing", (), "there are no nodes", "Write nodes:, or a trace that has some.")
    for name in sorted(name for name, count in Counter(names).items() if count > 1):
        faults.add("duplicate", ("nodes",), f"two nodes are called {name}", "Rename one of them.")
    if scenario.top.policy and scenario.top.policy not in POLICIES:
        hint = did_you_mean(scenario.top.policy, POLICIES)
        faults.add("unknown_policy", ("policy",), f"there is no policy {scenario.top.policy}", hint)
    known = set(names)
    for at, fault in happens.items():
        for name in fault.nodes():
            if name not in known and name != ANY:
                hint = did_you_mean(name, [*names[:200], ANY])
                faults.add("unknown_node", ("faults", at, fault.kind), f"there is no node {name}", hint)
    queues = [queue.name for queue in pools.queue_specs()]
    for name, jobs in scenario.jobs.items():
        _check_jobs(scenario, name, jobs, pools, queues, faults)
    for trace in scenario.traces:
        if trace.queue and trace.queue not in queues:
            faults.add(
                "unknown_queue", ("traces",), f"there is no queue {trace.queue}", did_you_mean(trace.queue, queues)
            )


def _check_jobs(
    scenario: Scenario, name: str, jobs: JobsEntry, pools: PoolsDocument, queues: list[str], faults: FaultList
) -> None:
    path = ("jobs", name)
    if jobs.queue and jobs.queue not in queues:
        faults.add(
            "unknown_queue", (*path, "queue"), f"there is no queue {jobs.queue}", did_you_mean(jobs.queue, queues)
        )
    if jobs.policy and jobs.policy not in POLICIES:
        faults.add(
            "unknown_policy",
            (*path, "policy"),
            f"there is no policy {jobs.policy}",
            did_you_mean(jobs.policy, POLICIES),
        )
    if jobs.host and jobs.host not in scenario.specs.hosts:
        hint = did_you_mean(jobs.host, scenario.specs.hosts)
        faults.add("unknown_host", (*path, "host"), f"there is no logical host {jobs.host}", hint)
    named = {("pools", kind): pool for kind, pool in jobs.pools.items()}
    if jobs.gpu is not None and jobs.gpu.pool:
        named["gpu", "pool"] = jobs.gpu.pool
    for where, pool in named.items():
        if pool not in pools.pools:
            faults.add("unknown_pool", (*path, *where), f"there is no pool {pool}", did_you_mean(pool, pools.pools))
    earlier = list(scenario.jobs)[: list(scenario.jobs).index(name)]
    for other in jobs.after:
        if other not in earlier:
            hint = "Only what stands above it can be named. " + did_you_mean(other, earlier)
            faults.add("unknown_job", (*path, "after"), f"there are no jobs {other} above it", hint)
    try:
        gang = jobs.placed_together()
    except ValidationError as error:
        faults.add_validation((*path, "gang"), error, JobsEntry)
    else:
        if gang is not None and (wrong := gang.fault(jobs.tasks)):
            faults.add("out_of_range", (*path, "gang"), wrong, "Ask for fewer tasks, or leave gang: out.")


# --- reading entries ------------------------------------------------------------------------------------------------


def _entry(model: type[Model], typed: Any, path: tuple[str | int, ...], faults: FaultList) -> Model | None:
    try:
        return model.model_validate(typed)
    except ValidationError as error:
        faults.add_validation(path, error, model)
        return None


def _named(model: type[Model], section: str, value: Mapping[str, Any], faults: FaultList) -> dict[str, Model]:
    typed = value.get(section)
    if typed is None:
        return {}
    if not isinstance(typed, dict):
        faults.add("wrong_type", (section,), f"{shown(typed)} is not a mapping", "Write names, and what each is.")
        return {}
    read = {name: _entry(model, entry or {}, (section, name), faults) for name, entry in typed.items()}
    return {name: entry for name, entry in read.items() if entry is not None}


def _listed(model: type[Model], section: str, value: Mapping[str, Any], faults: FaultList) -> dict[int, Model]:
    typed = value.get(section)
    if typed is None:
        return {}
    if not isinstance(typed, list):
        faults.add("wrong_type", (section,), f"{shown(typed)} is not a list", f"Write - … below {section}:.")
        return {}
    read = {at: _entry(model, entry, (section, at), faults) for at, entry in enumerate(typed)}
    return {at: entry for at, entry in read.items() if entry is not None}


def _placed(fault: Any, faults: FaultList, at: int) -> Any:
    """A fault of a trace that could not be found: where the scenario names it."""
    placed = FaultList(faults.file, faults.lines)
    placed.add(fault.code, ("traces", at), fault.message, fault.hint)
    return placed.found[0]


def _set(value: Any, name: str, new: Any) -> None:
    """Put a value at a dotted name: `policy`, `queues.normal.priority`, `settings.beat`, `faults.0.for`.

    `nodes` with a number is the number of nodes of each entry that has a `count`, or of the only one.
    """
    steps = name.split(".")
    if steps == ["nodes"] and isinstance(value, dict) and isinstance(value.get("nodes"), dict):
        entries = [entry for entry in value["nodes"].values() if isinstance(entry, dict)]
        counted = [entry for entry in entries if "count" in entry] or entries
        if len(counted) != 1:
            hint = f"Say which: {', '.join(f'nodes.{key}.count' for key in value['nodes'])}."
            raise InputError(f"{len(counted)} entries of nodes could be meant", field=name, hint=hint)
        counted[0]["count"] = new
        return
    for step in steps[:-1]:
        if isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, dict):
            value = value.setdefault(step, {})
        else:
            raise InputError(
                f"the scenario has no {name}", field=name, hint="Write it as it is nested: queues.normal.policy."
            )
    if not isinstance(value, dict):
        raise InputError(
            f"the scenario has no {name}", field=name, hint="Write it as it is nested: queues.normal.policy."
        )
    value[steps[-1]] = new
