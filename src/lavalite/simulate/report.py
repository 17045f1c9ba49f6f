"""What a run shows: the cluster every so often (Snapshot), and how it all went (Report). Plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lavalite.control.views import node_state
from lavalite.model.resources import GPU, KINDS
from lavalite.placement.gpu_policies import fragment_share
from lavalite.simulate.measures import fairness, percentile

if TYPE_CHECKING:
    from lavalite.simulate.run import Simulation

SHOWN_NODES = 20


@dataclass(slots=True, frozen=True)
class NodeNow:
    """One node. Amounts by kind; `beat_age_seconds` is None where it has no session."""

    name: str
    state: str
    committed: dict[str, int]
    capacity: dict[str, int]
    tasks: int
    beat_age_seconds: int | None


@dataclass(slots=True, frozen=True)
class Snapshot:
    """The cluster at a time, in seconds since the start. `use` is what is committed of each kind, from 0 to 1;
    `fragmented` is the part of what is free of GPUs that is of no use to the usual task, None without GPUs."""

    at: float
    tasks: dict[str, int]
    nodes: dict[str, int]
    use: dict[str, float]
    fragmented: float | None
    each: list[NodeNow]
    """The first nodes, by name."""

    def record(self) -> dict[str, Any]:
        return {"type": "snapshot", **asdict(self)}


@dataclass(slots=True, frozen=True)
class Report:
    """How a run went. `ended` is done, until (its time was up), stalled (what waits waits for ever) or stopped.

    Times are in seconds. `use` is over the whole run, `use_over_time` at each snapshot; `fairness` is Jain's index
    over users, of the rarest kind that anybody used.
    """

    name: str
    ended: str
    at: float
    tasks: dict[str, int]
    refused_jobs: int
    makespan: float
    wait: dict[str, float | None]
    slowdown: dict[str, float | None]
    use: dict[str, float]
    use_over_time: list[tuple[float, dict[str, float]]]
    fragmented: float | None
    fairness: float | None
    placements: int
    evictions: int
    preemptions: int
    retries: int
    unfinished: list[str] = field(default_factory=list)
    """Why what waits waits, of some."""

    def record(self) -> dict[str, Any]:
        return {"type": "report", **asdict(self)}


def snapshot_of(run: Simulation) -> Snapshot:
    cluster, measures = run.cluster, run.measures
    state, wall = cluster.state, cluster.wall
    state.refresh_columns(wall)
    running = sum(1 for live in measures.live.values() if live.started_at is not None)
    tasks = {
        "pending": state.unfinished_tasks - len(measures.live),
        "assigned": len(measures.live) - running,
        "running": running,
        "succeeded": measures.ended["succeeded"],
        "failed": measures.ended["failed"],
        "evicted": measures.evictions,
    }
    states = {node.name: node_state(state, node, wall) for node in state.nodes.values()}
    each = []
    for name in sorted(states)[:SHOWN_NODES]:
        node = state.nodes[name]
        kinds = sorted(state.book.kinds(name), key=_order)
        each.append(
            NodeNow(
                name,
                states[name],
                {kind: state.book.committed(name, kind) for kind in kinds},
                {kind: state.book.capacity(name, kind) for kind in kinds},
                len(node.runs),
                int(wall - node.heard_at) if node.registered else None,
            )
        )
    return Snapshot(
        cluster.now, tasks, dict(sorted(Counter(states.values()).items())), _use_now(run), _fragmented(run), each
    )


def _order(kind: str) -> int:
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def _use_now(run: Simulation) -> dict[str, float]:
    columns = run.cluster.state.columns
    use = {}
    for kind in KINDS:
        has = int(columns.capacity(kind).sum())
        if has:
            use[kind] = round(1 - int(columns.free(kind).sum()) / has, 4)
    return use


def _fragmented(run: Simulation) -> float | None:
    """By the usual tasks of late; where no policy goes by them, nobody has worked them out."""
    columns = run.cluster.state.columns
    share = fragment_share(columns, run.workload())
    return None if share is None else round(share, 4)


def report_of(run: Simulation, why: str) -> Report:
    measures, now, state = run.measures, run.cluster.now, run.cluster.state
    offered, used_by = _offered(run), measures.used_until(now)
    used = sum(used_by.values(), Counter[str]())
    for user in run.users():
        used_by.setdefault(user, Counter())  # who got nothing counts as well
    unfinished = state.unfinished_tasks
    use = {kind: round(used[kind] / offered[kind], 4) for kind in KINDS if offered[kind] > 0}
    rarest = next((kind for kind in (GPU, *KINDS) if used[kind] > 0), None)
    fair = fairness(used_by, rarest) if rarest is not None else None
    return Report(
        name=run.scenario.top.name or run.scenario.file,
        ended=why,
        at=round(now, 3),
        tasks={
            "submitted": run.submitted_tasks,
            **{state: measures.ended[state] for state in sorted(measures.ended)},
            "unfinished": unfinished,
        },
        refused_jobs=measures.refused,
        makespan=round(measures.last_end, 3),
        wait=_percentiles([*measures.waits, *run.waits_so_far()]),
        slowdown=_percentiles(measures.slowdowns),
        use=use,
        use_over_time=[(snapshot.at, snapshot.use) for snapshot in run.snapshots],
        fragmented=_fragmented(run),
        fairness=None if fair is None else round(fair, 4),
        placements=measures.placements,
        evictions=measures.evictions,
        preemptions=measures.preemptions,
        retries=measures.retries,
        unfinished=run.why_unfinished() if unfinished else [],
    )


def _offered(run: Simulation) -> Counter[str]:
    """Amount × seconds that it was there, by kind."""
    offered: Counter[str] = Counter()
    for plan in run.scenario.nodes:
        if (joined_at := run.joined_at.get(plan.capacity.name)) is not None:
            for kind, amount in plan.capacity.amounts.items():
                offered[kind] += amount * (run.cluster.now - joined_at)  # type: ignore[assignment]
    return offered


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    found = {f"p{int(part * 100)}": percentile(values, part) for part in (0.5, 0.9, 0.99)}
    found["mean"] = sum(values) / len(values) if values else None
    found["max"] = max(values, default=None)
    return {name: None if value is None else round(value, 3) for name, value in found.items()}
