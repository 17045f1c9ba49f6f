"""Request classes: all equal requests together. They share one column of what fits, kept up row by row.

A commitment touches one provider, so between two looks only a few rows are worked out anew.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lavalite.model.job import Request
from lavalite.model.resources import GPU, WHOLE
from lavalite.placement.columns import Bools, Columns, DeviceRow, GpuSelector, Ints
from lavalite.placement.policies import Choice

NO_LIMIT = 2**40
"""Tasks that fit where nothing is asked for."""


class RequestClass:
    """What is asked for, from which pool per kind, or on which logical host.

    `pools` names the pool of each kind asked for; a kind that is absent may come from any node.
    """

    def __init__(self, request: Request, pools: Mapping[str, str], host: str = "") -> None:
        self.request = request
        self.amounts = request.amounts()
        self.pools = dict(pools) if not host else {}
        self.host = host
        self.gpu = gpu_selector(request)
        self._fits: Ints = np.zeros(0, dtype=np.int64)
        self._seen = 0
        self._generation = -1

    def choice(self, columns: Columns, after: int = -1) -> Choice:
        """What a policy chooses from, as of now. `after` is the row chosen last, for policies that take turns."""
        return Choice(self.fits(columns), self._fullness(columns), after)

    def fits(self, columns: Columns) -> Ints:
        """How many tasks each row can take now."""
        if self._generation != columns.generation or len(self._fits) > len(columns):
            self._fits = self._work_out(columns, np.arange(len(columns)))
            self._generation, self._seen = columns.generation, len(columns.changes)
        elif self._seen < len(columns.changes):
            missing = len(columns) - len(self._fits)
            if missing:
                self._fits = np.concatenate([self._fits, np.zeros(missing, dtype=np.int64)])
            rows = np.unique(np.asarray(columns.changes[self._seen :], dtype=np.int64))
            self._fits[rows] = self._work_out(columns, rows)
            self._seen = len(columns.changes)
        return self._fits

    def eligible(self, columns: Columns) -> Bools:
        """Rows that the request means at all: the host it names, or the nodes of its pools."""
        if self.host:
            mask = np.zeros(len(columns), dtype=np.bool_)
            row = columns.row(self.host)
            if row is not None:
                mask[row] = columns.is_host[row]
            return mask
        mask = ~columns.is_host
        for pool in self.pools.values():
            mask &= columns.pool(pool)
        return mask

    def pick_devices(self, devices: tuple[DeviceRow, ...]) -> list[str]:
        """The devices for one task on a row where it fits: whole ones in order, a part where least is left."""
        if self.gpu is None:
            return []
        usable = [d for d in devices if self.gpu.units(d)]
        if self.gpu.part:
            return [min(usable, key=lambda d: d.free).id]
        return [d.id for d in usable[: self.amounts[GPU] // WHOLE]]

    def _work_out(self, columns: Columns, rows: Ints) -> Ints:
        fits = np.where((self.eligible(columns) & columns.ready)[rows], NO_LIMIT, 0)
        for kind, amount in self.amounts.items():
            fits = np.minimum(fits, columns.free(kind)[rows] // amount)
        if self.gpu is not None:
            each = 1 if self.gpu.part else self.amounts[GPU] // WHOLE
            fits = np.minimum(fits, columns.gpus(self.gpu)[rows] // each)
        return fits.astype(np.int64)

    def _fullness(self, columns: Columns) -> Ints:
        """0–100: with one task more, how much of what is asked for is used, averaged over the kinds."""
        if not self.amounts:
            return np.zeros(len(columns), dtype=np.int64)
        total = np.zeros(len(columns), dtype=np.int64)
        for kind, amount in self.amounts.items():
            capacity = np.maximum(columns.capacity(kind), 1)
            used = capacity - columns.free(kind) + min(amount, 2**56)
            total += np.minimum(100, used * 100 // capacity)
        return total // len(self.amounts)


def gpu_selector(request: Request) -> GpuSelector | None:
    """What the request asks of each GPU; None if it asks for none."""
    if not request.gpu_milli:
        return None
    part = request.gpu_milli if request.gpu_milli < WHOLE else 0
    return GpuSelector(request.gpu_model, request.gpu_memory_bytes, part)
