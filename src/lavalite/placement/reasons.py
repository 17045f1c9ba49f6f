"""Why something does not fit: constants that filters collect, and the sentence that people read.

A reason is a value, never an exception. Filters count one reason for each node that they turn away; the nearest
fit says what would have to become free.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from lavalite.model.amounts import format_amount
from lavalite.model.resources import NETWORK
from lavalite.placement.wiring import LINK


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
    MAY_NOT_BE_FAR = "may_not_be_far"
    FAR_MEMORY_TAKEN = "far_memory_taken"
    NO_PATH = "no_path"
    NOT_IN_RACK = "not_in_rack"
    NO_PROVIDER = "no_provider"
    PATH_FULL = "path_full"
    STORAGE_STAYS = "storage_stays"
    EXECUTOR_STAYS = "executor_stays"


FAR_REASONS = (Reason.PATH_FULL, Reason.NO_PROVIDER, Reason.NOT_IN_RACK, Reason.NO_PATH)
"""Why a node that could be an anchor gets from no other node what it lacks, the nearest to success first."""


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
    Reason.MAY_NOT_BE_FAR: ("lacks more than may come from other nodes", "lack more than may come from other nodes"),
    Reason.FAR_MEMORY_TAKEN: ("carries far memory already", "carry far memory already"),
    Reason.NO_PATH: ("has no path to what it lacks", "have no path to what they lack"),
    Reason.NOT_IN_RACK: ("has nothing in its rack of what it lacks", "have nothing in their rack of what they lack"),
    Reason.NO_PROVIDER: ("lacks what no other node has free", "lack what no other node has free"),
    Reason.PATH_FULL: ("has no room on the way to what it lacks", "have no room on the way to what they lack"),
    Reason.STORAGE_STAYS: (
        "has storage of another node, which does not shrink",
        "have storage of other nodes, which does not shrink",
    ),
    Reason.EXECUTOR_STAYS: (
        "runs it as what it was composed as; remove the host to have it otherwise",
        "run it as what it was composed as; remove the host to have it otherwise",
    ),
}
"""For one node and for several: `1 is draining`, `2 are draining`."""


@dataclass(slots=True, frozen=True)
class Gap:
    """What a node that could be an anchor does not get from others: so much of `kind`, from `pool`, and why not.

    Where the way is full: a circuit of `bits_per_second` has only `free` on `account`, a link or a node's card. Where
    too little is free: `provider` has most, and lacks `lacks`. `hopeless_from`: so much or more is not had by any
    node of the same rack and switches either; 0 where that is not known.
    """

    reason: Reason
    kind: str
    amount: int
    anchor: str
    pool: str = ""
    account: str = ""
    free: int = 0
    bits_per_second: int = 0
    provider: str = ""
    lacks: int = 0
    hopeless_from: int = 0

    def words(self) -> str:
        """`storage for n01 would come over link/r1/core, which has 1Gbit/s free of the 5Gbit/s asked for`."""
        of_pool = f" of pool {self.pool}" if self.pool else ""
        if self.reason is Reason.PATH_FULL:
            free, asked = format_amount(NETWORK, self.free), format_amount(NETWORK, self.bits_per_second)
            account = f"link {self.account.removeprefix(LINK)}" if self.account.startswith(LINK) else ""
            account = account or f"the network of {self.account}"
            return f"{self.kind} for {self.anchor} would come over {account}, which has {free} free of {asked} asked"
        if self.reason is Reason.NO_PATH:
            return f"no node{of_pool} that offers {self.kind} has a path to {self.anchor}"
        if self.reason is Reason.NOT_IN_RACK:
            return f"no node{of_pool} in the rack of {self.anchor} offers {self.kind}"
        if not self.provider:
            return f"no other node{of_pool} offers {self.kind}"
        return f"for {self.anchor} the nearest of other nodes{of_pool}, {self.provider}, lacks " + format_amount(
            self.kind, self.lacks, named=True
        )


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
    gap: Gap | None = None
    """Of a logical host: what the node that came nearest to being its anchor does not get from others."""

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
        if self.gap is not None:
            text += f"; {self.gap.words()}"
        return text + "."
