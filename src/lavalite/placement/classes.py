"""Request classes: all equal requests together, and on which rows one task of them fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lavalite.model.job import Request
from lavalite.model.resources import ALL_PLACES, GPU, PLACES, WHOLE
from lavalite.placement.closeness import nearest
from lavalite.placement.columns import (
    KIND_AT,
    MOST,
    PLACES_AT,
    Bools,
    Columns,
    DeviceRow,
    Floats,
    GpuSelector,
    Ints,
    amounts_line,
)

MANY = 512
"""From so many rows on it is quicker to look at one kind after the other than at all kinds at once."""
NONE = -1
"""Stands for no row, and for the score or the room of a row on which nothing fits."""
NO_LIMIT = 2**40
"""Tasks that fit where nothing is asked for."""


class PartClass(NamedTuple):
    """A part of a job: so many tasks that ask for the same."""

    wanted: RequestClass
    tasks: int


class RequestClass:
    """What is asked for, from which pool per kind, or on which logical host.

    `pools` names the pool of each kind asked for; a kind that is absent may come from any node. `amounts` is what one
    task takes, per kind in the kind's unit; `needs` has its places as well: all of them if it is `exclusive`, and has
    its node for itself. `labels` are the selections of nodes (columns keep them as they keep pools) that it must be
    in, and `gpu` what it asks of each GPU; None if it asks for none. `beside`: it may also be where the host has GPUs
    of another node; what it takes of that node itself comes of `pools_beside`.
    """

    def __init__(
        self,
        request: Request,
        pools: Mapping[str, str],
        host: str = "",
        labels: Sequence[str] = (),
        *,
        beside: bool = False,
    ) -> None:
        self.request = request
        self.amounts = request.amounts()
        self.exclusive = request.exclusive
        self.needs = {**self.amounts, PLACES: ALL_PLACES if self.exclusive else 1}
        self.pools = dict(pools) if not host else {}
        self.host, self.beside = host, beside
        self.pools_beside = {kind: pool for kind, pool in pools.items() if kind != GPU} if beside else {}
        self.gpu = gpu_selector(request)
        self.whole_gpus = 0 if self.gpu is None or self.gpu.part else self.amounts[GPU] // WHOLE
        self.line = amounts_line(self.needs)
        """A number for each kind, and for places."""
        self.need: Ints = self.line[:PLACES_AT].reshape(-1, 1)
        """The kinds alone, one below the other."""
        self.special = {kind: amount for kind, amount in self.amounts.items() if kind not in KIND_AT}
        """Of `amounts`, what is of special kinds."""
        self._usual = [(kind, amount) for kind, amount in self.needs.items() if kind in KIND_AT]
        cut = [(KIND_AT[kind], min(amount, MOST)) for kind, amount in self.amounts.items() if kind in KIND_AT]
        self.at = [(at, amount, 100 * amount) for at, amount in cut]
        """The kinds that are asked for as numbers, with how much and a hundred times that."""
        self.labels = tuple(labels) if not host else ()
        self.from_pools = [*sorted(set(self.pools.values())), *self.labels]

    @cached_property
    def asked(self) -> Floats:
        """1 for each kind that is asked for, else 0."""
        return (self.need[:, 0] > 0).astype(np.float64)

    def spare(self, columns: Columns, rows: Ints | None) -> Ints:
        """What one task would leave of each kind on each of the rows (None: of all): a line for each kind.

        Below 0 for any kind where it does not fit, or is not meant to go.
        """
        if not self.host:
            return columns.room_at(rows) - self.need
        open_to_it = self.eligible(columns) & columns.ready
        free = columns.free_at(None) - self.need
        here: Ints = np.where(open_to_it, free, NONE)
        return here if rows is None else here[:, rows]

    def fitting(self, columns: Columns, rows: Ints | None, spare: Ints | None = None) -> Bools:
        """On which of the rows one task fits now; `spare` is what it would leave there, where that is known."""
        if self.host and spare is None:
            spare = self.spare(columns, rows)
        if spare is not None:
            fits: Bools = np.minimum.reduce(spare, axis=0) >= 0
        else:
            room = columns.room_at(rows)
            at, amount, _ = self.at[0] if self.at else (0, 0, 0)
            fits = room[at] >= amount
            for at, amount, _ in self.at[1:]:
                fits &= room[at] >= amount
        for pool in self.from_pools:
            fits &= columns.pool(pool) if rows is None else columns.pool(pool)[rows]
        if self.exclusive:  # that one place at least is free, what is free of all else says
            places = columns.free(PLACES)
            fits &= (places if rows is None else places[rows]) >= ALL_PLACES
        if self.gpu is not None:
            fits &= columns.gpus(self.gpu, rows) >= (self.whole_gpus or 1)
        for kind, amount in self.special.items():
            special = columns.free(kind)
            fits &= (special if rows is None else special[rows]) >= amount
        return fits

    def rows_that_fit(self, columns: Columns) -> list[int]:
        """The rows on which a task fits now, in their order."""
        return [int(row) for row in np.flatnonzero(self.fitting(columns, None))]

    def fits(self, columns: Columns) -> Ints:
        """How many tasks each row can take now."""
        fits = np.where(self.eligible(columns) & columns.ready, NO_LIMIT, 0)
        for kind, amount in self.needs.items():
            fits = np.minimum(fits, columns.free(kind) // amount)
        if self.gpu is not None:
            fits = np.minimum(fits, columns.gpus(self.gpu) // (self.whole_gpus or 1))
        return fits.astype(np.int64)

    def tasks_on(self, columns: Columns, row: int) -> int:
        """How many tasks the row has room for, if it takes any."""
        free = columns.free_on(row)
        most = min(int(free[KIND_AT[kind]]) // amount for kind, amount in self._usual)
        for kind, amount in self.special.items():
            most = min(most, columns.special_free(row, kind) // amount)
        if self.gpu is not None:
            most = min(most, self.gpu_tasks(columns.devices(row)))
        return most

    def tasks_in(self, free: Mapping[str, int], devices: Iterable[DeviceRow]) -> int:
        """For how many tasks so much is enough, if it is open to them."""
        most = min(free[kind] // amount for kind, amount in self.needs.items())
        return most if self.gpu is None or most <= 0 else min(most, self.gpu_tasks(devices))

    def gpu_tasks(self, devices: Iterable[DeviceRow]) -> int:
        """For how many tasks these devices are enough. It must ask for GPUs."""
        assert self.gpu is not None
        return self.gpu.units_in(devices) // (self.whole_gpus or 1)

    def in_pools(self, columns: Columns) -> Bools:
        """As `eligible`, whatever labels the rows have."""
        mask = self.eligible(columns) if self.host else ~columns.is_host
        for pool in self.pools.values():
            mask = mask & columns.pool(pool)
        return mask

    def eligible(self, columns: Columns) -> Bools:
        """Rows that the request means at all: the host it names, or the nodes of its pools that have its labels."""
        if self.host:
            mask = self.of_host(columns)
            for place, node in columns.places_of(self.host) if self.beside else ():
                mask[place] &= all(columns.pool(pool)[node] for pool in self.pools_beside.values())
            return mask
        mask = ~columns.is_host
        for pool in self.from_pools:
            mask &= columns.pool(pool)
        return mask

    def of_host(self, columns: Columns) -> Bools:
        """As `eligible`, of a request that names a host, whatever pools the nodes of its places are in."""
        mask = np.zeros(len(columns), dtype=np.bool_)
        rows = [row for row, _ in columns.places_of(self.host)] if self.beside else []
        if (row := columns.row(self.host)) is not None:
            rows.append(row)
        mask[rows] = columns.is_host[rows]
        return mask

    def pick_devices(self, devices: tuple[DeviceRow, ...]) -> list[str]:
        """The devices for one task on a row where it fits: whole ones that are nearest to each other, a part where
        least is left.
        """
        if self.gpu is None:
            return []
        usable = [d for d in devices if self.gpu.units(d)]
        if self.gpu.part:
            return [min(usable, key=lambda d: d.free).id]
        first = usable[0].near
        if all(d.near is first or d.near == first for d in usable):
            return [d.id for d in usable[: self.whole_gpus]]
        return [d.id for d in nearest(usable, self.whole_gpus, lambda d: d.near, self.gpu.together)]


def gpu_selector(request: Request) -> GpuSelector | None:
    """What the request asks of each GPU; None if it asks for none."""
    if not request.gpu_milli:
        return None
    part = request.gpu_milli if request.gpu_milli < WHOLE else 0
    whole = 0 if part else request.gpu_milli // WHOLE
    together = request.gpu_topology if whole > 1 else ""
    return GpuSelector(
        request.gpu_model, request.gpu_memory_bytes, part, together, whole if together else 0, request.gpu_mig
    )
