"""Why something does not fit: constants that filters collect, and the sentence that people read.

A reason is a value, never an exception. Filters count one reason for each node that they turn away; the nearest
fit says what would have to become free.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from lavalite.model.amounts import format_amount


class Reason(StrEnum):
    """Why a node was turned away."""

    NOT_IN_POOL = "not_in_pool"
    NOT_LABELLED = "not_labelled"
    NOT_NEAR = "not_near"
    NOT_APART = "not_apart"
    NO_MODEL = "no_model"
    NO_MIG = "no_mig"
    NO_KIND = "no_kind"
    TOO_SMALL = "too_small"
    NO_TOPOLOGY = "no_topology"
    NOT_TOGETHER = "not_together"
    NOT_EMPTY = "not_empty"
    NOT_SHARED = "not_shared"
    TOO_FEW_FREE = "too_few_free"
    HELD = "held"
    DRAINING = "draining"
    SILENT = "silent"
    NO_SUCH_HOST = "no_such_host"
    POOL_QUOTA = "pool_quota"
    FLOATING_TAKEN = "floating_taken"
    EXCLUDED = "excluded"


WORDS: dict[Reason, tuple[str, str]] = {
    Reason.NOT_IN_POOL: ("is not in the pool asked for", "are not in the pool asked for"),
    Reason.NOT_LABELLED: ("has not the labels asked for", "have not the labels asked for"),
    Reason.NOT_NEAR: ("is not near the jobs asked for", "are not near the jobs asked for"),
    Reason.NOT_APART: ("is near jobs that it is to be apart from", "are near jobs that it is to be apart from"),
    Reason.NO_MODEL: ("has no device of the model asked for", "have no device of the model asked for"),
    Reason.NO_MIG: ("has no MIG instance of the profile asked for", "have no MIG instances of the profile asked for"),
    Reason.NO_KIND: ("offers none of a kind asked for", "offer none of a kind asked for"),
    Reason.TOO_SMALL: ("is too small even when empty", "are too small even when empty"),
    Reason.NO_TOPOLOGY: ("has no GPUs that are connected as asked", "have no GPUs that are connected as asked"),
    Reason.NOT_TOGETHER: (
        "has GPUs free that are not connected as asked",
        "have GPUs free that are not connected as asked",
    ),
    Reason.NOT_EMPTY: ("is not empty", "are not empty"),
    Reason.NOT_SHARED: ("has a task that has it for itself", "have a task each that has them for itself"),
    Reason.TOO_FEW_FREE: ("has too little free", "have too little free"),
    Reason.HELD: ("is held by a reservation", "are held by reservations"),
    Reason.DRAINING: ("is draining", "are draining"),
    Reason.SILENT: ("is silent", "are silent"),
    Reason.NO_SUCH_HOST: ("is not the host asked for", "are not the host asked for"),
    Reason.POOL_QUOTA: ("is beyond the pool's quota", "are beyond the pool's quota"),
    Reason.FLOATING_TAKEN: ("waits for a floating resource", "wait for a floating resource"),
    Reason.EXCLUDED: ("is excluded by the request", "are excluded by the request"),
}
"""For one node and for several: `1 is draining`, `2 are draining`."""


@dataclass(slots=True)
class Refusal:
    """The answer "it does not fit", with its reasons.

    `turned_away` counts nodes per reason, each node under the first reason that turned it away; `nearest` is the
    node that lacks least, fewest others in its way, and `lacks` what it lacks, per kind in the kind's unit.
    """

    turned_away: dict[Reason, int] = field(default_factory=dict)
    nearest: str = ""
    lacks: dict[str, int] = field(default_factory=dict)
    asked: str = ""
    taken: bool = False
    """Whether what is in the way at the nearest is that it is not empty, or that somebody has it for itself."""

    @property
    def nodes(self) -> int:
        """How many nodes were looked at."""
        return sum(self.turned_away.values())

    def sentence(self) -> str:
        """`12 nodes: 9 have no device of the model asked for, 1 is draining; nearest n07 lacks 2 gpu.`"""
        if not self.turned_away:
            return "There are no nodes to choose from."
        counted = sorted(self.turned_away.items(), key=lambda entry: (-entry[1], entry[0]))
        words = ", ".join(f"{count} {WORDS[reason][count != 1]}" for reason, count in counted)
        text = f"{self.nodes} node{'s' if self.nodes != 1 else ''}: {words}"
        if self.nearest and self.lacks:
            short = " and ".join(format_amount(kind, self.lacks[kind], named=True) for kind in sorted(self.lacks))
            text += f"; nearest {self.nearest} lacks {short}"
        elif self.nearest:
            text += f"; nearest {self.nearest}"
        return text + "."
