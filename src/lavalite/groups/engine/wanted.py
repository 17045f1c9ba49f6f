"""What an ask means to placement: request classes, in the order in which they are to be tried.

Most asks are one class. A part of a GPU may be had by a MIG instance that is made on demand, of each sort of GPU the
smallest profile that has the part; or by MPS; or bare.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lavalite.base.errors import InputError, UnknownNameError
from lavalite.groups.engine.node_state import MADE_ON_DEMAND, WORDS
from lavalite.groups.engine.pools import Pool, default_pools
from lavalite.groups.requirements import Ask
from lavalite.model.request import Request
from lavalite.model.resources import GPU, WHOLE, kinds_in_order
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import GpuSelector


class Variant(NamedTuple):
    """`instances` of `profile` are made on demand; 0 where none are. `load` is that of each, or of the part."""

    wanted: RequestClass
    isolation: Literal["", "mig", "mps", "none"] = ""
    profile: str = ""
    instances: int = 0
    load: int = 0


class Bucket(NamedTuple):
    """What a free group must have exactly, so that it is not more than is needed."""

    gpu_milli: int
    mig: str
    special: tuple[tuple[str, int], ...]


@dataclass(slots=True, frozen=True)
class Wanted:
    """`pools` is by kind. `asked` is a key: equal asks, of the same nodes, have the same."""

    request: Request
    variants: tuple[Variant, ...]
    pools: Mapping[str, str]
    bucket: Bucket
    isolations: frozenset[str]
    """Of a free group, those that will do."""
    labels: tuple[str, ...]
    """Selections of nodes, as columns call them."""
    priority: int
    """Of its pools the highest."""


def read_wanted(ask: Ask, pools: Mapping[str, Pool], selection: str, on_demand: Iterable[str]) -> Wanted:
    """`selection` is what columns call the nodes it may be on; empty for any. `on_demand` are the MIG profiles that
    sorts of GPUs can make, as lavalite.groups.engine.node_state spells them.

    Raises UnknownNameError for a pool that is not there, InputError where one has to be named.
    """
    request = ask.request
    chosen = _pools(ask, pools, kinds_in_order(request.amounts()))
    labels = [selection] if selection else []
    part = request.gpu_milli if request.gpu_milli % WHOLE else 0
    isolations = _isolations(ask) if part else frozenset({"mig"} if request.gpu_mig else {""})
    variants = []
    if request.gpu_mig:
        variants.append(Variant(RequestClass(request, chosen, labels=labels), "", request.gpu_mig))
    if "mig" in isolations:
        count = 1 if part else request.gpu_milli // WHOLE
        for sort in sorted(on_demand):
            profile, load = _smallest(sort, part, request.gpu_mig)
            if profile:
                variants.append(_made(request, chosen, labels, sort, profile, load, count))
    apart: tuple[Literal["mps", "none"], ...] = ("mps", "none")
    for isolation in apart:
        if isolation in isolations:
            model = f"{request.gpu_model} {WORDS[isolation]}".strip()
            of_it = request.model_copy(update={"gpu_model": model})
            variants.append(Variant(RequestClass(of_it, chosen, labels=labels), isolation, load=part))
    if not part and not request.gpu_mig:
        variants.append(Variant(RequestClass(request, chosen, labels=labels)))
    special = tuple(sorted((kind, amount) for kind, amount in request.special.items() if amount))
    bucket = Bucket(request.gpu_milli, request.gpu_mig, special)
    priority = max((pools[name].priority for name in chosen.values()), default=0)
    return Wanted(request, tuple(variants), chosen, bucket, isolations, tuple(labels), priority)


def bare(wanted: Wanted) -> RequestClass:
    """The class of the same, with nothing that keeps the part apart."""
    model = f"{wanted.request.gpu_model} {WORDS['none']}".strip()
    return RequestClass(wanted.request.model_copy(update={"gpu_model": model}), wanted.pools, labels=wanted.labels)


def _isolations(ask: Ask) -> frozenset[str]:
    asked = ask.requirements.isolation
    return frozenset({"mig", "mps"} if asked == "auto" else {asked})


def _smallest(sort: str, part: int, profile: str) -> tuple[str, int]:
    """Of the profiles of a sort of GPU the one that is asked for, or the smallest that has the part."""
    for entry in filter(None, sort.removeprefix(MADE_ON_DEMAND).split(",")):  # the smallest first
        name, _, load = entry.partition(":")
        if name == profile or (not profile and int(load) >= part):
            return name, int(load)
    return "", 0


def _made(
    request: Request, pools: Mapping[str, str], labels: list[str], sort: str, profile: str, load: int, count: int
) -> Variant:
    wanted = RequestClass(request.model_copy(update={"gpu_milli": load * count, "gpu_mig": ""}), pools, labels=labels)
    wanted.gpu = GpuSelector(request.gpu_model, request.gpu_memory_bytes, load, mig=sort)
    wanted.whole_gpus = count if count > 1 else 0  # so many of them are counted
    return Variant(wanted, "mig", profile, count, load)


def _pools(ask: Ask, pools: Mapping[str, Pool], kinds: list[str]) -> dict[str, str]:
    chosen = default_pools(pools, kinds)
    if name := ask.constraints.pool:
        pool = pools.get(name)
        if pool is None:
            hint = f"There are {', '.join(sorted(pools))}." if pools else "Make it by put_pool."
            raise UnknownNameError(f"there is no pool {name[:80]!r}", field="constraints.pool", hint=hint)
        of_it = {kind: name for kind in kinds if kind in pool.spec.kinds}
        if not of_it:
            hint = f"It has {', '.join(pool.spec.kinds)}."
            raise InputError(f"pool {name} has nothing of what is asked for", field="constraints.pool", hint=hint)
        chosen |= of_it
    for kind in kinds:
        counted = sorted(pool.name for pool in pools.values() if pool.counts(kind))
        if kind not in chosen and counted:
            message = f"pools have quotas of {kind}, and it has to be said of which pool it is"
            raise InputError(message, field="constraints.pool", hint=f"Name one: {', '.join(counted)}.")
    return chosen


def gpu_amount(variant: Variant) -> int:
    return variant.wanted.amounts.get(GPU, 0)
