"""Where the groups of each component are: for who is to be near them, or apart from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lavalite.groups.engine.node_state import NodeState
from lavalite.groups.records import GroupRecord
from lavalite.placement.columns import Bools, Columns

MOST_KEPT = 256


class Neighbours:
    """Groups that are allocated, or draining still, count; what is merely reserved does not."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, int]] = {}
        """How many groups a component has on each node, where it has any."""
        self._versions: dict[str, int] = {}
        self._masks: dict[tuple[str, str, bool], tuple[tuple[int, int, int], Bools]] = {}
        self._labels: dict[str, tuple[tuple[int, int], dict[str, list[int]]]] = {}

    def add(self, record: GroupRecord, sign: int) -> None:
        if not record.component or record.state not in ("allocated", "draining"):
            return
        nodes = self.nodes.setdefault(record.component, {})
        before = nodes.get(record.node, 0)
        if before + sign:
            nodes[record.node] = before + sign
        else:
            del nodes[record.node]
            if not nodes:
                del self.nodes[record.component]
        if not before or not before + sign:
            self._versions[record.component] = self._versions.get(record.component, 0) + 1

    def open_rows(
        self,
        columns: Columns,
        nodes: Mapping[str, NodeState],
        version: int,
        near: Sequence[str],
        apart: Sequence[str],
        within: str,
    ) -> list[tuple[bool, Bools]]:
        """For each component, whether it is one to be near to, and the rows that are. `version` is of the nodes."""
        asked = [(name, True) for name in near] + [(name, False) for name in apart]
        return [(is_near, self._mask(columns, nodes, version, name, within, is_near)) for name, is_near in asked]

    def _mask(
        self,
        columns: Columns,
        nodes: Mapping[str, NodeState],
        version: int,
        component: str,
        within: str,
        is_near: bool,
    ) -> Bools:
        """The rows that are near the component: on its nodes, or alike in the label; not to be changed."""
        as_of = (self._versions.get(component, 0), version, len(columns))
        known = self._masks.get((component, within, is_near))
        if known is not None and known[0] == as_of:
            return known[1]
        mask = np.zeros(len(columns), dtype=np.bool_)
        here = self.nodes.get(component, {})
        rows = [row for name in here if (row := columns.row(name)) is not None]
        if within:
            by_value = self._rows_by_value(columns, nodes, version, within)
            values = {v for name in here if name in nodes for v in nodes[name].labels.get(within, ())}
            for value in values:
                mask[by_value.get(value, [])] = True
        # Who is to be apart is so from the node itself too, whether that has the label or not.
        if not within or not is_near:
            mask[rows] = True
        if len(self._masks) >= MOST_KEPT:
            self._masks.clear()
        self._masks[(component, within, is_near)] = (as_of, mask)
        return mask

    def _rows_by_value(
        self, columns: Columns, nodes: Mapping[str, NodeState], version: int, label: str
    ) -> dict[str, list[int]]:
        as_of = (version, len(columns))
        known = self._labels.get(label)
        if known is not None and known[0] == as_of:
            return known[1]
        found: dict[str, list[int]] = {}
        for name, node in nodes.items():
            row = columns.row(name)
            for value in node.labels.get(label, ()) if row is not None else ():
                found.setdefault(value, []).append(row if row is not None else 0)
        if len(self._labels) >= MOST_KEPT:
            self._labels.clear()
        self._labels[label] = (as_of, found)
        return found
