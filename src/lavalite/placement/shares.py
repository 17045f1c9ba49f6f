"""What a logical host holds in the ledger: its parts, and its circuits on both cards and on every link between."""

from __future__ import annotations

from lavalite.model.host import Circuit, LogicalHost
from lavalite.model.job import Share
from lavalite.model.resources import NETWORK


def shares_of(host: LogicalHost) -> list[Share]:
    """All that the host holds, parts first. A provider and kind may stand there more than once."""
    parts = [
        Share(provider=part.provider, kind=part.kind, amount=part.amount, devices=part.devices, pool=part.pool)
        for part in host.parts
    ]
    return parts + [share for circuit in host.circuits for share in circuit_shares(circuit)]


def circuit_shares(circuit: Circuit) -> list[Share]:
    """Its bandwidth, on the card of the anchor, on that of the provider, and on each link."""
    accounts = (circuit.anchor, circuit.provider, *circuit.links)
    return [Share(provider=name, kind=NETWORK, amount=circuit.bits_per_second) for name in accounts]
