"""What the application inside a logical host may ask for, and what it has asked for.

    as in pools.yml  ≤  asked for from inside  ≤  limits of pools.yml

It may have more of the kinds that have a limit there, and give it back again. What it asked for is kept in the host's
record; where the definition comes to say more, or to limit it lower, that stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lavalite.base.errors import ConflictError, InputError, UnknownNameError
from lavalite.control.state import ClusterState
from lavalite.model.amounts import format_amount
from lavalite.model.host import HostState, LogicalHost
from lavalite.model.resources import KINDS
from lavalite.model.specs import HostSpec


def grown_spec(spec: HostSpec, host: LogicalHost | None) -> HostSpec:
    """What is to be composed: the spec, with what was asked for from inside where that is more."""
    if host is None or not host.grown:
        return spec
    amounts = dict(spec.amounts)
    for kind, amount in host.grown.items():
        if kind in spec.limits:
            amounts[kind] = max(amounts.get(kind, 0), min(amount, spec.limits[kind]))
    return replace(spec, amounts=amounts)


def limits(state: ClusterState, name: str) -> tuple[dict[str, int], dict[str, int]]:
    """(least, most) that may be asked for from inside, by the kinds that have a limit. Raises UnknownNameError."""
    spec = state.specs.hosts.get(name)
    if spec is None:
        raise UnknownNameError(f"pools.yml has no logical host {name}", hint="It can be neither grown nor shrunk.")
    return {kind: spec.amounts.get(kind, 0) for kind in spec.limits}, dict(spec.limits)


def check(state: ClusterState, name: str, amounts: Mapping[str, int]) -> HostSpec:
    """The spec that the host would have. Raises InputError beyond its limits, ConflictError while it is not whole."""
    least, most = limits(state, name)
    for kind, amount in amounts.items():
        if kind not in KINDS:
            raise InputError(
                f"{kind[:40]!r} is no kind of resource", field="amounts", hint=f"Of: {', '.join(KINDS)}."
            )
        if kind not in most:
            hint = f"Write limits: {{{kind}: …}} at logical_hosts in pools.yml."
            raise InputError(f"{name} may not grow in {kind}", code="no_limit", field=kind, hint=hint)
        if not least[kind] <= amount <= most[kind]:
            low, high = format_amount(kind, least[kind]), format_amount(kind, most[kind])
            message = (
                f"{name} may have from {low} to {high} of {kind}, and {format_amount(kind, amount)} was asked for"
            )
            raise InputError(message, code="out_of_range", field=kind, hint="Ask for what is within that.")
    host = state.hosts.get(name)
    if host is None or host.state is not HostState.COMPOSED:
        said = host.state.value if host is not None else "not there"
        raise ConflictError(f"{name} is {said}", code="not_composed", hint="Ask again when it is composed.")
    return grown_spec(state.specs.hosts[name], host.model_copy(update={"grown": {**host.grown, **amounts}}))


def grown(state: ClusterState, name: str, amounts: Mapping[str, int]) -> None:
    """Take over what was asked for; the composer sees to it."""
    host = state.hosts.get(name)
    if host is not None and {**host.grown, **amounts} != host.grown:
        state.set_host(host.model_copy(update={"grown": {**host.grown, **amounts}}))
        state.compose_wanted, state.compose_at = True, 0.0
