"""A decision once more, from its record: the same rows, request, policy and bounds choose the same nodes.

Nothing in placement or control is random (a test holds that), so the record is all that there is to know.
"""

from __future__ import annotations

import numpy as np

from lavalite.base.errors import InputError
from lavalite.model.decision import Chosen, DecisionRecord
from lavalite.model.resources import ALL_PLACES, PLACES
from lavalite.placement.classes import RequestClass
from lavalite.placement.closeness import Near
from lavalite.placement.columns import (
    PLACES_AT,
    Columns,
    DeviceRow,
    GpuSelector,
    Workload,
    WorkloadPart,
    amounts_line,
)
from lavalite.placement.ranking import Bounds, Leaning, PolicyFault, Ranking
from lavalite.placement.registry import POLICIES

PLACES_LEFT = {"": ALL_PLACES, "shared": ALL_PLACES - 1, "alone": 0}


def replay(record: DecisionRecord) -> list[Chosen]:
    """What is chosen by it here and now. Raises InputError where it was altered, or its policy is not known here."""
    if record.digest != record.computed_digest():
        raise InputError("the record was altered: its digest is another one", field="digest", hint="Fetch it anew.")
    policy = POLICIES.get(record.policy)
    if policy is None:
        hint = "Replay it where the scheduler runs, with the policies registered there."
        raise InputError(f"there is no policy {record.policy} here", field="policy", hint=hint)
    columns = columns_of(record)
    ranking = Ranking(RequestClass(record.request, record.pools, record.host, record.labels), policy)
    bounds = Bounds(record.most, record.only) if record.most is not None else None
    try:
        runs = ranking.runs(columns, record.wanted, record.after, bounds, _leaning(record))
    except PolicyFault as fault:
        raise InputError(str(fault), field="policy", hint="See what has changed in it.") from None
    return [Chosen(node=columns.names[run.row], tasks=run.tasks) for run in runs]


def _leaning(record: DecisionRecord) -> Leaning | None:
    opened = np.array([node.open for node in record.nodes], dtype=np.bool_)
    met = np.array([node.met for node in record.nodes], dtype=np.int64)
    return None if opened.all() and not met.any() else Leaning(opened, met)


def columns_of(record: DecisionRecord) -> Columns:
    """The rows as they were."""
    columns = Columns()
    pools: dict[str, list[str]] = {name: [] for name in (*record.pools.values(), *record.labels)}
    for node in record.nodes:
        devices = [DeviceRow(d.id, d.model, d.memory_bytes, d.free, Near(*d.near), d.mig) for d in node.devices]
        free = node.free | {PLACES: PLACES_LEFT[node.occupied]}
        columns.set_row(node.name, node.capacity, free, devices, state=node.state, is_host=node.is_host)
        for pool in node.pools:
            pools[pool].append(node.name)
    columns.set_pools(pools)
    parts = tuple(
        WorkloadPart(
            tuple(amounts_line(asked.request)[:PLACES_AT].tolist()),
            GpuSelector(*asked.gpu) if asked.gpu is not None else None,
            asked.whole_gpus,
            asked.weight,
        )
        for asked in record.workload
    )
    columns.workload = Workload(parts, 1)
    return columns
