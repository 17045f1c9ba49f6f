"""Which policies there are: those of this room, and what others register under the entry point group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lavalite.placement.board import Board, Member
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import Ints
from lavalite.placement.gpu_policies import Fgd, GpuPacking
from lavalite.placement.policies import MOST_SCORE, BestFit, BinPack, FirstFit, Policy, RoundRobin, Spread
from lavalite.placement.ranking import Ranking
from lavalite.placement.rows import Rows

_OURS: tuple[type[Policy], ...] = (FirstFit, BestFit, RoundRobin, BinPack, Spread, GpuPacking, Fgd)
POLICIES: dict[str, Policy] = {policy.name: policy() for policy in _OURS}
"""By name; `add_policies` adds to it, once, when the scheduler starts."""


class Unusable(Policy):
    """Stands for a policy that could not be loaded: jobs that name it wait, and say why."""

    def __init__(self, name: str, why: str) -> None:
        self.name = name
        self._why = why

    def scores(self, wanted: RequestClass, rows: Rows) -> Ints:
        raise RuntimeError(self._why)


class Rankings:
    """The rankings last asked for, by what they rank: a class that comes again finds its scores nearly worked out."""

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._known: dict[tuple[Any, ...], Ranking] = {}
        self._boards: dict[str, Board] = {}

    def of(self, wanted: RequestClass, policy: str) -> Ranking:
        pools, needs = tuple(wanted.pools.items()), tuple(wanted.needs.items())
        key = (policy, wanted.host, wanted.beside, pools, wanted.labels, needs, wanted.gpu)
        found = self._known.pop(key, None)
        if found is None:
            chosen = POLICIES.get(policy) or Unusable(policy, "there is no policy of that name here")
            while len(self._known) >= self._most:
                last = self._known.pop(next(iter(self._known)))
                if isinstance(last, Member):
                    last.leave()
            if Member.may_be(wanted, chosen):
                board = self._boards.get(policy)
                if board is None:
                    board = self._boards[policy] = Board(chosen)
                found = Member(wanted, chosen, board)
            else:
                found = Ranking(wanted, chosen)
        self._known[key] = found
        return found


def add_policies(found: Mapping[str, Callable[[], Any]]) -> list[str]:
    """Add what was found under the entry point group: name → how to load it. Ours cannot be replaced.

    Answers with a sentence for each that cannot be used; what names it waits with that reason.
    """
    faults = []
    for name, load in found.items():
        if name in POLICIES:
            faults.append(f"policy {name}: there is one of that name already; register it under another.")
            continue
        POLICIES[name] = policy = _loaded(name, load)
        if isinstance(policy, Unusable):
            faults.append(f"policy {name}: {policy._why}")
    return faults


def _loaded(name: str, load: Callable[[], Any]) -> Policy:
    try:
        made = load()()
    except Exception as error:
        return Unusable(name, f"it cannot be loaded: {type(error).__name__}: {error}")
    if not isinstance(made, Policy):
        return Unusable(name, "what is registered is no subclass of lavalite.placement.policies.Policy")
    if made.name != name:
        return Unusable(name, f"it is registered as {name}, but calls itself {made.name}")
    if not 0 <= made.highest <= MOST_SCORE:
        return Unusable(name, f"its highest score is {made.highest}, and may be from 0 to {MOST_SCORE}")
    made.trusted = False
    return made
