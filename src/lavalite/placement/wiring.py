"""Which switches each node is linked to, and which switches those are linked to: what `links` of pools.yml say.

    n01 ──link/n01/r1──► r1 ──link/r1/core──► core ◄──link/r2/core── r2 ◄──link/n07/r2── n07

Every link is an account of the ledger: provider `link/FROM/TO`, kind network. What is taken of it is no matter here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from lavalite.model.resources import NETWORK
from lavalite.model.specs import LinkSpec, NodeCapacity

LINK = "link/"
"""What the names of links begin with, as providers."""


def link_name(source: str, to: str) -> str:
    """The account of the link from a node or a switch to a switch."""
    return f"{LINK}{source}/{to}"


def link_accounts(links: Sequence[LinkSpec], nodes: Iterable[NodeCapacity]) -> dict[str, int]:
    """Every link there is between these nodes and switches, by its name, and its bits a second."""
    return Wiring.of(links, nodes).accounts()


def with_cards(nodes: Sequence[NodeCapacity], links: Sequence[LinkSpec]) -> list[NodeCapacity]:
    """The nodes, those that do not know their card's speed with the width of their widest link."""
    wiring = Wiring.of(links, nodes)
    return [wiring.with_card(node) for node in nodes]


@dataclass(slots=True)
class Wiring:
    """`uplinks` of a node and `above` a switch are switches, each with the bits a second of the link there.

    Where several links lead from one to the same switch, it is the widest.
    """

    declared: bool = False
    uplinks: dict[str, dict[str, int]] = field(default_factory=dict)
    above: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, links: Sequence[LinkSpec], nodes: Iterable[NodeCapacity]) -> Wiring:
        wiring = cls(declared=bool(links))
        for link in links:
            if link.switch:
                _widen(wiring.above.setdefault(link.switch, {}), link)
        patterned = [link for link in links if link.selector is not None and link.selector.patterns]
        labelled = _by_label(links)
        looked_at = sorted({name for link in links if link.selector for name in link.selector.labels})
        alike: dict[tuple[tuple[str, ...], ...], dict[str, int]] = {}
        for node in nodes:
            # Racks of nodes have the same labels: which links those mean is found once.
            signature = tuple(tuple(node.labels.get(label, ())) for label in looked_at)
            if signature not in alike:
                values = ((label, value) for label in looked_at for value in node.labels.get(label, ()))
                alike[signature] = _matching([link for value in values for link in labelled.get(value, ())], node)
            ups = dict(alike[signature])
            for switch, width in _matching(patterned, node).items():
                ups[switch] = max(width, ups.get(switch, 0))
            if ups:
                wiring.uplinks[node.name] = ups
        return wiring

    def accounts(self) -> dict[str, int]:
        """Every link by name, with its bits a second."""
        return {
            link_name(source, to): width
            for ends in (self.uplinks, self.above)
            for source, ups in ends.items()
            for to, width in ups.items()
        }

    def with_card(self, node: NodeCapacity) -> NodeCapacity:
        """The node, with the widest link from it where its card's speed is not known."""
        ups = self.uplinks.get(node.name)
        if not ups or node.amounts.get(NETWORK):
            return node
        return replace(node, amounts={**node.amounts, NETWORK: max(ups.values())})


def _by_label(links: Sequence[LinkSpec]) -> dict[tuple[str, str], list[LinkSpec]]:
    """Those that select by labels, by one label and value that a node must have."""
    found: dict[tuple[str, str], list[LinkSpec]] = {}
    for link in links:
        if link.selector is not None and link.selector.labels:
            label, values = next(iter(link.selector.labels.items()))
            for value in values:
                found.setdefault((label, value), []).append(link)
    return found


def _matching(links: list[LinkSpec], node: NodeCapacity) -> dict[str, int]:
    found: dict[str, int] = {}
    for link in links:
        if link.selector is not None and link.selector.matches(node.name, node.labels):
            _widen(found, link)
    return found


def _widen(ups: dict[str, int], link: LinkSpec) -> None:
    ups[link.to] = max(link.bits_per_second, ups.get(link.to, 0))
