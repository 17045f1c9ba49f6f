"""The record of one decision of placement: all that it went by, and what was chosen. Whoever has it can repeat it."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

from lavalite.model.job import Request
from lavalite.model.resources import Stored


class DeviceThen(Stored):
    """A GPU: `free` is what was left of it, out of 1000."""

    id: str
    model: str = ""
    memory_bytes: int = 0
    free: int = 0
    near: tuple[str, str, str] = ("", "", "")
    mig: str = ""


class NodeThen(Stored):
    """A node or logical host as it was. `state` is why it took nothing, empty where it did; amounts by kind.

    `pools` also has the selections of labels that it is of. `open` and `met` say what is near: whether the task could
    go there for that, and the weights of what it prefers.
    """

    name: str
    state: str = ""
    is_host: bool = False
    occupied: Literal["", "shared", "alone"] = ""
    """Whether anybody held anything of it, or one task had it for itself."""
    free: dict[str, int] = {}
    capacity: dict[str, int] = {}
    devices: list[DeviceThen] = []
    pools: list[str] = []
    open: bool = True
    met: int = 0


class GpuThen(NamedTuple):
    """What was asked of each GPU, as placement.columns has it."""

    model: str
    memory_bytes: int
    part: int
    together: str
    each: int
    mig: str


class AskedThen(Stored):
    """A sort of task that was asked for in general, and how often."""

    request: dict[str, int]
    gpu: GpuThen | None = None
    whole_gpus: int = 0
    weight: int = 0


class Chosen(Stored):
    """So many tasks on one node, in the order in which they were placed."""

    node: str
    tasks: int


class DecisionRecord(Stored):
    """Up to `wanted` tasks of a job, the first of them `first_task`, at `at`, under a policy.

    `after` is the place in `nodes` that the queue was given last; `most` how many tasks some of them (by that place)
    took, for what is kept for others, and with `only` no others took any.
    """

    job: int
    first_task: int
    last_task: int
    at: float
    epoch: tuple[int, int]
    queue: str
    policy: str
    host: str = ""
    request: Request
    pools: dict[str, str] = {}
    labels: list[str] = []
    wanted: int
    after: int = -1
    most: dict[int, int] | None = None
    only: bool = False
    workload: list[AskedThen] = []
    nodes: list[NodeThen]
    chosen: list[Chosen]
    digest: str = ""
    """Of all the rest."""

    def computed_digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"digest"}).encode()).hexdigest()
