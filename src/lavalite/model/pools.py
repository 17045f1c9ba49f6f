"""pools.yml, the operator's one file: read, checked whole, and told in words what is wrong with it.

The same sentences come from `lavalite check`, the API, the modules and the inventory plugin: all end up here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lavalite.base.errors import Fault, InputError
from lavalite.base.yamlfile import YamlText, read_yaml
from lavalite.model.pools_check import check_entries
from lavalite.model.pools_document import DEFINED, PoolsDocument, read_document
from lavalite.model.pools_faults import FaultList
from lavalite.model.pools_fit import check_nodes
from lavalite.model.specs import NodeCapacity

__all__ = ["DEFINED", "PoolsDocument", "check_document", "check_pools_file", "load_pools", "pools_from", "read_pools"]


def load_pools(text: str, file: str = "", nodes: Sequence[NodeCapacity] | None = None) -> PoolsDocument:
    """The document in `text`; with `nodes`, also checked against them.

    `file` is only a name for messages. Raises InputError with all faults at once.
    """
    document, faults = read_pools(read_yaml(text, file), file, lambda document: nodes)
    if document is None or faults:
        raise InputError(faults=faults)
    return document


def pools_from(value: Any, nodes: Sequence[NodeCapacity] | None = None) -> PoolsDocument:
    """The document that came as JSON, such as `canonical()` made it. Raises InputError with all faults at once."""
    if isinstance(value, dict):
        value = {key: below for key, below in value.items() if key != "parsed"}
    whole = YamlText(value, {}, [], whole=True)
    document, faults = read_pools(whole, "", lambda document: nodes)
    if document is None or faults:
        raise InputError(faults=faults)
    return document


def check_document(document: PoolsDocument, nodes: Sequence[NodeCapacity]) -> list[Fault]:
    """What of a good document does not hold against these nodes."""
    faults = FaultList(document.file, document.lines)
    check_nodes(document, nodes, faults)
    return faults.in_order()


def check_pools_file(text: str, file: str, nodes: Sequence[NodeCapacity] | None = None) -> list[Fault]:
    """Everything wrong with a pools.yml; none where it is good.

    Without `nodes` those of its own `capacity` are taken, whose groups are not known: nothing is held against it
    that a group could mend.
    """

    def known(document: PoolsDocument) -> Sequence[NodeCapacity] | None:
        if nodes is not None:
            return nodes
        return None if document.broken["capacity"] else document.capacity_nodes() or None

    return read_pools(read_yaml(text, file), file, known)[1]


def read_pools(
    text: YamlText, file: str, nodes_of: Callable[[PoolsDocument], Sequence[NodeCapacity] | None]
) -> tuple[PoolsDocument | None, list[Fault]]:
    """The document as far as it can be read, and all its faults; what stands on a fault of YAML is said once."""
    if not text.whole:
        return None, text.faults
    faults = FaultList(file, text.lines)
    document = read_document(text.value, faults)
    check_entries(document, faults)
    nodes = nodes_of(document)
    if nodes is not None:
        check_nodes(document, nodes, faults)
    said = {fault.field for fault in text.faults}
    ours = [fault for fault in faults.in_order() if fault.field not in said]
    return document, sorted([*text.faults, *ours], key=lambda fault: fault.line)
