"""What must hold between pools.yml and real nodes: that pools select some, do not overlap, and are large enough.

A node whose groups are not known (labels without `group`) may be in any group; one without amounts has not been
discovered yet. Neither is a reason to call a document wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from lavalite.base.errors import InputError
from lavalite.base.yamlfile import Path
from lavalite.model.amounts import format_amount
from lavalite.model.pools_check import GROUP_PREFIX
from lavalite.model.pools_document import PoolsDocument, read_quota
from lavalite.model.pools_faults import FaultList, did_you_mean
from lavalite.model.pools_hosts import HostEntry
from lavalite.model.resources import CPU, GPU, MEMORY, NETWORK, amount_of, is_special
from lavalite.model.selector import GROUP, Selector
from lavalite.model.specs import NodeCapacity, fits_model, format_kind

MAX_NAMED = 4
_AMOUNT_AT = {"storage": "size", "network": "bandwidth"}
"""Where an amount is below its kind; of other kinds that have more to say, it is the count."""


def check_nodes(document: PoolsDocument, nodes: Sequence[NodeCapacity], faults: FaultList) -> None:
    """Add every fault that shows once the nodes are known."""
    _names(document, nodes, faults)
    members = {
        name: [node for node in nodes if pool.nodes is not None and pool.nodes.may_match(node.name, node.labels)]
        for name, pool in document.pools.items()
    }
    for name, pool in document.pools.items():
        if pool.nodes is not None and not members[name]:
            _selects_nothing(pool.nodes, nodes, ("pools", name, "nodes"), faults)
    for at, link in document.links.items():
        source = link.source
        if isinstance(source, Selector) and not any(source.may_match(n.name, n.labels) for n in nodes):
            _selects_nothing(source, nodes, ("links", at, "from"), faults)
    _overlaps(document, members, faults)
    _floating(document, nodes, faults)
    for name in document.pools:
        _quota_sums(document, name, members[name], faults)
    for name, entry in document.logical_hosts.items():
        for kind in entry.amounts():
            pool_name = document.pool_of(entry, kind)
            inside = members.get(pool_name, []) if pool_name else list(nodes)
            if inside and all(node.amounts for node in inside):
                _Room(kind, pool_name, inside).check(name, entry, faults)


def _names(document: PoolsDocument, nodes: Sequence[NodeCapacity], faults: FaultList) -> None:
    """No logical host is named like a node or like a group of the inventory."""
    node_names = {node.name for node in nodes} - set(document.capacity)
    groups = {group for node in nodes for group in node.labels.get(GROUP, ())}
    for entry_name, entry in document.logical_hosts.items():
        path: Path = ("logical_hosts", entry_name)
        hint = "Choose another name for the logical host."
        for name in entry.expanded(entry_name):
            if name in node_names:
                faults.add("name_taken", path, f"{name} is a node already", hint)
            elif name in groups and not name.startswith(GROUP_PREFIX) and name != "all":
                faults.add("name_taken", path, f"{name} is a group already", hint)


def _selects_nothing(selector: Selector, nodes: Sequence[NodeCapacity], path: Path, faults: FaultList) -> None:
    """The fault, and the label or value that was probably meant."""
    hint = "Check the spelling, or add such nodes."
    if not nodes:
        hint = "There are no nodes: fill the group lavalite_nodes, or capacity."
    for label, wanted in selector.labels.items():
        present = {value for node in nodes for value in node.labels.get(label, ())}
        if not present and nodes and label != GROUP:
            labels = {name for node in nodes for name in node.labels}
            hint = f"No node has the label {label}. {did_you_mean(label, labels | {GROUP})}"
        elif present and not present & set(wanted):
            hint = f"No node has {label} {' or '.join(wanted)}. {did_you_mean(wanted[0], present)}"
    faults.add("selects_nothing", path, f"{selector.spelled()} selects no node", hint)


def _overlaps(document: PoolsDocument, members: dict[str, list[NodeCapacity]], faults: FaultList) -> None:
    """A kind of a node is in one pool at most. Only what surely overlaps counts."""
    sure = {
        name: {node.name for node in found if (s := document.pools[name].nodes) and s.matches(node.name, node.labels)}
        for name, found in members.items()
    }
    for first, second in combinations(document.pools, 2):
        kinds = [kind for kind in document.pools[first].kinds if kind in document.pools[second].kinds]
        both = sorted(sure[first] & sure[second]) if kinds else []
        if both:
            named = ", ".join(both[:MAX_NAMED]) + (f" and {len(both) - MAX_NAMED} more" if both[MAX_NAMED:] else "")
            message = f"{named}: the {' and '.join(kinds)} of {'it' if len(both) == 1 else 'them'} "
            message += f"is in pool {first} already" if len(kinds) == 1 else f"are in pool {first} already"
            faults.add("pools_overlap", ("pools", second, "nodes"), message, "Narrow one of the two pools.")


def _floating(document: PoolsDocument, nodes: Sequence[NodeCapacity], faults: FaultList) -> None:
    """Nothing floats of which nodes have devices."""
    has = {kind: node.name for node in nodes if node.name not in document.capacity for kind in node.devices}
    for name, pool in document.pools.items():
        for kind in pool.floating.keys() & has.keys():
            message = f"{kind} is a kind that nodes have: {has[kind]} has devices of it"
            faults.add("bad_name", ("pools", name, "floating", kind), message, "Choose another name.")


def _quota_sums(document: PoolsDocument, name: str, inside: list[NodeCapacity], faults: FaultList) -> None:
    """What a pool's tenants are sure of, all together, is there: else somebody's would be lent, and never be back."""
    if not inside or not all(node.amounts for node in inside):
        return
    sums: dict[str, int] = {}
    for tenant, entry in document.pools[name].quota.items():
        try:
            by_kind = read_quota(document.pools[name], entry)
        except InputError:
            return  # told by pools_check
        for kind, quota in by_kind.items():
            sums[kind] = sums.get(kind, 0) + quota.nominal
            there = sum(node.amounts.get(kind, 0) for node in inside)
            if sums[kind] <= there:
                continue
            cohort = document.pools[name].cohort
            of_cohort = f" of cohort {cohort}" if cohort else ""
            message = f"with this the nominal quotas come to {format_amount(kind, sums[kind], named=True)}, and "
            message += f"pool {name}{of_cohort} has {format_amount(kind, there)}"
            left = max(0, there - sums[kind] + quota.nominal)
            hint = f"Write {format_amount(kind, left)} or less, lower another tenant's, or add nodes to pool {name}."
            path: Path = ("pools", name, "quota", tenant, "nominal")
            faults.add("quota_sum", (*path, kind) if isinstance(entry.nominal, dict) else path, message, hint)


class _Room:
    """Whether the nodes of one pool (or all, where there is none) have room for an entry's hosts, of one kind."""

    def __init__(self, kind: str, pool: str, nodes: list[NodeCapacity]) -> None:
        self._kind = kind
        self._nodes = nodes
        self._pool = pool
        self._where = f"pool {pool}" if pool else "the cluster"

    def check(self, name: str, entry: HostEntry, faults: FaultList) -> None:
        model = entry.model_of(self._kind)
        memory = entry.gpu.memory if self._kind == GPU and entry.gpu else 0
        path: Path = ("logical_hosts", name, *(("special",) if is_special(self._kind) else ()), self._kind)
        offered = [self._offer(node, model, memory) for node in self._nodes]
        if self._kind == NETWORK and not any(offered):
            return  # no node knows its speed: that is no reason to call the document wrong
        if not any(offered) and (model or memory):
            self._no_such_device(model, path, faults)
            return
        path = (*path, _AMOUNT_AT.get(self._kind, "count")) if self._nested() else path
        each, count = entry.amounts()[self._kind], 1 if entry.count is None else entry.count
        far = entry.far_amounts().get(self._kind, 0)
        if each * count > sum(offered):
            asked = format_kind(self._kind, each, model)
            message = f"{f'{count} × ' if count > 1 else ''}{asked} asked, "
            message += f"{self._where} has {format_amount(self._kind, sum(offered)) if any(offered) else 'none'}"
            faults.add("larger_than_pool", path, message, self._hint(count))
        elif self._kind != NETWORK and each - far > max(offered):
            message = f"{format_kind(self._kind, each - far, model)} asked of one node, "
            message += f"the largest of {self._where} has {format_amount(self._kind, max(offered))}"
            more = ", or let some be far" if self._kind in (MEMORY, GPU) or is_special(self._kind) else ""
            faults.add("larger_than_node", path, message, f"Lower {self._kind}{more}.")

    def _nested(self) -> bool:
        return self._kind not in (CPU, MEMORY)

    def _offer(self, node: NodeCapacity, model: str, memory_bytes: int) -> int:
        if model or memory_bytes:
            fit = [device for device in node.devices.get(self._kind, ()) if fits_model(device, model, memory_bytes)]
            return amount_of(self._kind, len(fit))
        return node.amounts.get(self._kind, 0)

    def _hint(self, count: int) -> str:
        what = "count" if count > 1 or self._kind == GPU or is_special(self._kind) else self._kind
        return f"Lower {what}, or add nodes{f' to pool {self._pool}' if self._pool else ''}."

    def _no_such_device(self, model: str, path: Path, faults: FaultList) -> None:
        devices = [device for node in self._nodes for device in node.devices.get(self._kind, ())]
        there = {device.model for device in devices if device.model}
        if model and not any(fits_model(device, model, 0) for device in devices):
            message = f"no node of {self._where} has {model}"
            faults.add("unknown_model", (*path, "model"), message, did_you_mean(model, there))
        else:
            message = f"no GPU of {self._where} has that much memory"
            faults.add("unknown_model", (*path, "memory"), message, "Lower memory, or leave it out.")
