"""What must hold between the entries of pools.yml, whatever the nodes are."""

from __future__ import annotations

from difflib import get_close_matches
from ipaddress import ip_address, ip_interface

from lavalite.base.errors import InputError
from lavalite.base.plugins import POLICIES_GROUP, registered
from lavalite.base.yamlfile import Path
from lavalite.model.amounts import format_amount, format_duration
from lavalite.model.host import VM
from lavalite.model.pools_document import PoolsDocument, read_quota
from lavalite.model.pools_faults import FaultList, did_you_mean
from lavalite.model.pools_hosts import HostEntry, VmEntry
from lavalite.model.resources import GPU, KINDS, MEMORY, is_special
from lavalite.model.specs import BUILT_IN_POLICIES, FENCE_AFTER_SECONDS, LOST_AFTER_SECONDS, TASKS

MAX_HOSTS = 20_000
FENCE_MARGIN_SECONDS, FENCE_MARGIN_PART = 10, 20
"""What is lost only so long after its fence, and a twentieth of that, is surely over: clocks and timers are late."""
SHORTEST_HALF_LIFE_SECONDS = 60
MAX_NAME_CHARACTERS = 63
GROUP_PREFIX = "lavalite_"
_ANSIBLE_NAMES = frozenset({"all", "ungrouped", "localhost"})
_RENAME = "Choose another name for the logical host."


def check_entries(document: PoolsDocument, faults: FaultList) -> None:
    """Add every fault that shows without knowing a node."""
    for check in (
        _host_names,
        _host_pools,
        _host_amounts,
        _vms,
        _default_pools,
        _floating,
        _quotas,
        _pool_limits,
        _queues,
        _links,
        _capacity_keys,
    ):
        check(document, faults)


def _host_names(document: PoolsDocument, faults: FaultList) -> None:
    """Names are unique after `count` is written out, and are no node's and no group's."""
    owner: dict[str, str] = {}
    for entry_name, entry in document.logical_hosts.items():
        path: Path = ("logical_hosts", entry_name)
        for name in entry.expanded(entry_name):
            if name in owner:
                message = f"{name} is also a host of logical_hosts.{owner[name]}"
                faults.add("duplicate_host", path, message, "Rename one of the two.")
                break
            if len(name) > MAX_NAME_CHARACTERS:
                faults.add("bad_name", path, f"{name} is longer than 63 characters", _RENAME)
                break
            owner[name] = entry_name
        if entry_name.startswith(GROUP_PREFIX) or entry_name in _ANSIBLE_NAMES:
            faults.add("name_taken", path, f"{entry_name} is a name that Ansible groups have", _RENAME)
        for name in entry.expanded(entry_name):
            if name in document.capacity:
                faults.add("name_taken", path, f"{name} is a node already", _RENAME)
    if len(owner) > MAX_HOSTS:
        faults.add("out_of_range", ("logical_hosts",), f"{len(owner)} hosts are too many", f"At most {MAX_HOSTS}.")


def _host_pools(document: PoolsDocument, faults: FaultList) -> None:
    """Each kind asked for has a pool: the one named, which must be for that kind, or the default."""
    names = set(document.pools) | document.broken["pools"]
    for entry_name, entry in document.logical_hosts.items():
        named = entry.named_pools()
        for kind, (pool, below) in named.items():
            path: Path = ("logical_hosts", entry_name, *below)
            if pool not in names:
                faults.add("unknown_pool", path, f"there is no pool {pool}", did_you_mean(pool, names))
            elif pool in document.pools and kind not in document.pools[pool].kinds:
                fit = [name for name, spec in document.pools.items() if kind in spec.kinds]
                hint = f"Pools for {kind}: {', '.join(fit)}." if fit else f"Add {kind} to its kinds."
                faults.add("wrong_pool", path, f"pool {pool} is not for {kind}", hint)
        for kind in entry.amounts():
            _has_a_pool(document, faults, entry_name, entry, kind)


def _has_a_pool(document: PoolsDocument, faults: FaultList, entry_name: str, entry: HostEntry, kind: str) -> None:
    fit = [name for name, spec in document.pools.items() if kind in spec.kinds]
    if document.pool_of(entry, kind) or not fit or document.broken["pools"]:
        return
    place = f"pools: {{{kind}: {fit[0]}}}" if kind in ("cpu", "memory") else f"pool: {fit[0]}"
    hint = f"Write {place}, or default: true at one pool for {kind}."
    message = f"no pool is named, and no pool for {kind} is the default"
    below = ("special", kind) if is_special(kind) else (kind,)
    faults.add("no_pool", ("logical_hosts", entry_name, *below), message, hint)


def _host_amounts(document: PoolsDocument, faults: FaultList) -> None:
    for entry_name, entry in document.logical_hosts.items():
        path: Path = ("logical_hosts", entry_name)
        asked = entry.amounts()
        if not entry.cpu:
            hint = "A host is where its CPU is: write cpu: 1 or more."
            faults.add("out_of_range", (*path, "cpu"), "no CPU is asked for", hint)
        for kind, limit in entry.limits.amounts().items():
            if limit < asked.get(kind, 0):
                text = format_amount(kind, asked[kind])
                message = f"{format_amount(kind, limit)} is less than the {text} it begins with"
                faults.add("out_of_range", (*path, "limits", kind), message, f"Write {text} or more.")
        _far(entry, asked, path, faults)


def _far(entry: HostEntry, asked: dict[str, int], path: Path, faults: FaultList) -> None:
    """What may be far is part of what is asked for, and may be far at all."""
    if entry.far.memory and entry.far.memory.of(entry.memory) > entry.memory:
        text = format_amount(MEMORY, entry.memory)
        message = f"more may be far than the {text} asked for"
        faults.add("out_of_range", (*path, "far", "memory"), message, f"Write {text} or less, or 100%.")
    if entry.far.gpu and entry.far.gpu > asked.get(GPU, 0):
        text = format_amount(GPU, asked.get(GPU, 0))
        hint = f"Write {text} or less." if asked.get(GPU) else "Leave it out, or ask for gpu."
        faults.add("out_of_range", (*path, "far", "gpu"), f"more may be far than the {text} asked for", hint)
    for kind, may in entry.far.special.items():
        if may > (has := asked.get(kind, 0)):
            hint = f"Write {has} or less." if has else f"Leave it out, or ask for {kind}."
            message = f"more may be far than the {has} asked for"
            faults.add("out_of_range", (*path, "far", "special", kind), message, hint)
    if entry.far.gpu and entry.gpu and entry.gpu.topology:
        message = f"GPUs that have {entry.gpu.topology} in common are all of one node"
        faults.add("out_of_range", (*path, "far", "gpu"), message, "Leave it out, or leave out gpu.topology.")
    if entry.near == "node":
        far: list[Path] = [("far", *(("special",) if is_special(k) else ()), k) for k in entry.far_amounts()]
        for below in [*far, ("storage", "circuit")]:
            if below[0] == "far" or (entry.storage and entry.storage.circuit is not None):
                message = "with near: node nothing comes from another node"
                faults.add(
                    "out_of_range", (*path, *below), message, "Leave it out, or write near: rack or near: any."
                )


def _vms(document: PoolsDocument, faults: FaultList) -> None:
    """A virtual machine says what it starts from, nobody else does; and no two have one address."""
    owner: dict[str, str] = {}
    for entry_name, entry in document.logical_hosts.items():
        path: Path = ("logical_hosts", entry_name)
        if entry.executor == VM and entry.vm is None:
            faults.add("missing", (*path, "vm"), "missing", "Write vm: {image: …}, or executor: bare.")
        if entry.executor == VM and entry.special:
            message = "a virtual machine is given no special devices"
            faults.add("out_of_range", (*path, "special"), message, "Leave it out, or write executor: bare.")
        if entry.vm is None:
            continue
        if entry.executor != VM:
            message = "only a virtual machine starts from this"
            faults.add("unknown_key", (*path, "vm"), message, "Write executor: vm, or leave it out.")
        _addresses(entry, (*path, "vm"), faults)
        for below, address in _spelled_addresses(entry.vm):
            host = address.split("/")[0]
            if host in owner:
                message = f"{host} is also an address of logical_hosts.{owner[host]}"
                faults.add("duplicate", (*path, "vm", *below), message, "Give each host one of its own.")
            owner.setdefault(host, entry_name)
            if entry.vm.gateway and ip_address(entry.vm.gateway) not in ip_interface(address).network:
                message = f"{entry.vm.gateway} is not in {ip_interface(address).network}, where {host} is"
                hint = "A gateway is a neighbour: write one of that network."
                faults.add("out_of_range", (*path, "vm", "gateway"), message, hint)


def _spelled_addresses(vm: VmEntry) -> list[tuple[Path, str]]:
    """Each with the path below `vm` where it is written."""
    one: list[tuple[Path, str]] = [(("address",), vm.address)] if vm.address else []
    return one + [(("addresses", at), address) for at, address in enumerate(vm.addresses)]


def _addresses(entry: HostEntry, path: Path, faults: FaultList) -> None:
    """`address` is of an entry that is one host, `addresses` of one with `count`."""
    assert entry.vm is not None, "asked of virtual machines"
    if entry.vm.address and entry.count is not None:
        hint = "Write addresses: [10.0.0.7/24, …], one for each host."
        faults.add("out_of_range", (*path, "address"), f"one address for {entry.count} hosts", hint)
    if entry.vm.addresses and entry.count is None:
        faults.add("unknown_key", (*path, "addresses"), "without count it is one host", "Write address: 10.0.0.7/24.")
    elif entry.vm.addresses and entry.count != (there := len(entry.vm.addresses)):
        message = f"{there} address{'es' if there != 1 else ''} for {entry.count} hosts"
        faults.add("out_of_range", (*path, "addresses"), message, "Write one for each host.")


def _default_pools(document: PoolsDocument, faults: FaultList) -> None:
    for kind in dict.fromkeys(kind for pool in document.pools.values() for kind in pool.kinds):
        defaults = [name for name, pool in document.pools.items() if pool.default and kind in pool.kinds]
        for name in defaults[1:]:
            message = f"pool {defaults[0]} is the default for {kind} already"
            faults.add("two_defaults", ("pools", name, "default"), message, "Keep default: true at one of them.")


def _floating(document: PoolsDocument, faults: FaultList) -> None:
    owner: dict[str, str] = {}
    of_nodes = {*KINDS, *(kind for pool in document.pools.values() for kind in pool.kinds)}
    of_nodes.update(kind for entry in document.capacity.values() for kind in entry.special)
    of_nodes.update(kind for entry in document.logical_hosts.values() for kind in entry.special)
    for name, pool in document.pools.items():
        for floating in pool.floating:
            path: Path = ("pools", name, "floating", floating)
            if floating in of_nodes:
                faults.add("bad_name", path, f"{floating} is a kind that nodes have", "Choose another name.")
            if floating in owner:
                message = f"pool {owner[floating]} has {floating} already"
                faults.add("duplicate", path, message, "Keep it in one pool.")
            owner.setdefault(floating, name)


def _quotas(document: PoolsDocument, faults: FaultList) -> None:
    for name, pool in document.pools.items():
        for tenant, quota in pool.quota.items():
            path: Path = ("pools", name, "quota", tenant)
            try:
                by_kind = read_quota(pool, quota)
            except InputError as error:
                fault = error.fault
                faults.add(fault.code, (*path, fault.field), fault.message, fault.hint)
                continue
            for kind, amounts in by_kind.items():
                if amounts.lend is not None and amounts.lend > amounts.nominal:
                    text = format_amount(kind, amounts.nominal)
                    message = f"more is lent than the {text} that is its own"
                    faults.add("out_of_range", (*path, "lend"), message, f"Write {text} or less.")
            if any(amounts.borrow for amounts in by_kind.values()) and not pool.cohort:
                hint = "Write cohort: NAME at the pool, and at those it borrows from."
                faults.add("missing", (*path, "borrow"), "the pool is in no cohort to borrow from", hint)


def _pool_limits(document: PoolsDocument, faults: FaultList) -> None:
    """A pool limits what it is for, and nothing else."""
    for name, pool in document.pools.items():
        known = [*pool.kinds, *pool.floating]
        for path, limited in pool.limits.spelled():
            for kind in sorted(set(limited.amounts()) - {TASKS, *known}):
                named = (place for place in ("special", "floating") if kind in getattr(limited, place))
                below = (*named, kind)
                message, hint = f"pool {name} is not for {kind}", f"It is for {', '.join(known)}."
                faults.add("wrong_pool", ("pools", name, "limits", *path, *below), message, hint)


def _queues(document: PoolsDocument, faults: FaultList) -> None:
    defaults = [name for name, queue in document.queues.items() if queue.default]
    for name in defaults[1:]:
        message = f"queue {defaults[0]} is the default already"
        faults.add("two_defaults", ("queues", name, "default"), message, "Keep default: true at one of them.")
    if len(document.queues) > 1 and not defaults and not document.broken["queues"]:
        hint = f"Write default: true at one: {', '.join(document.queues)}."
        faults.add("no_default", ("queues",), "no queue is the default", hint)
    for name, queue in document.queues.items():
        path: Path = ("queues", name)
        if queue.policy and queue.policy not in BUILT_IN_POLICIES and queue.policy not in registered(POLICIES_GROUP):
            hint = did_you_mean(queue.policy, [*BUILT_IN_POLICIES, *registered(POLICIES_GROUP)])
            faults.add("unknown_policy", (*path, "policy"), f"there is no policy {queue.policy}", hint)
        fence = FENCE_AFTER_SECONDS if queue.fence_after is None else queue.fence_after
        lost = LOST_AFTER_SECONDS if queue.lost_after is None else queue.lost_after
        if fence == 0:
            message, hint = "no time at all, which a node takes for never", "Write 15m, or leave it out."
            faults.add("out_of_range", (*path, "fence_after"), message, hint)
        if lost < fence + (margin := max(FENCE_MARGIN_SECONDS, -(-fence // FENCE_MARGIN_PART))):
            field = "lost_after" if queue.lost_after is not None else "fence_after"
            message = f"lost_after is not {format_duration(margin)} longer than fence_after"
            hint = (
                "A node must have stopped its work before it is given up, and one that was suspended stops it some "
                f"seconds late: write {format_duration(fence + margin)} or more for lost_after."
            )
            faults.add("out_of_range", (*path, field), message, hint)
        if queue.limits.tasks_per_user is not None and queue.limits.per_user.tasks is not None:
            message, hint = "tasks of each user are limited twice", "Keep tasks_per_user, or tasks in per_user."
            faults.add("duplicate", (*path, "limits", "tasks_per_user"), message, hint)
        if queue.fairshare is not None and queue.fairshare.half_life < SHORTEST_HALF_LIFE_SECONDS:
            message = f"{format_duration(queue.fairshare.half_life)} is too short to tell anybody's use by"
            faults.add("out_of_range", (*path, "fairshare", "half_life"), message, "Write 1m or more; 7d is usual.")
        _preemption(document, name, faults)
        if queue.limits.walltime == 0:
            faults.add("out_of_range", (*path, "limits", "walltime"), "no time at all", "Write 15m, or leave it out.")


def _preemption(document: PoolsDocument, name: str, faults: FaultList) -> None:
    """A queue preempts queues of lower priority, and there are such."""
    queue = document.queues[name]
    path: Path = ("queues", name, "preemption")
    if queue.preemption.mode == "none" or document.broken["queues"]:
        return
    lower = [other for other, entry in document.queues.items() if entry.priority < queue.priority]
    for at, other in enumerate(queue.preemption.queues):
        if other not in document.queues:
            hint = did_you_mean(other, lower)
            faults.add("unknown_queue", (*path, "queues", at), f"there is no queue {other}", hint)
        elif other not in lower:
            message = f"queue {other} has priority {document.queues[other].priority}, and {name} has {queue.priority}"
            hint = "Only queues of lower priority can be preempted: leave it out, or change the priorities."
            faults.add("out_of_range", (*path, "queues", at), message, hint)
    below = queue.preemption.below
    if below is not None and below > queue.priority:
        message = f"below {below} are queues that come before {name}, which has priority {queue.priority}"
        faults.add("out_of_range", (*path, "below"), message, f"Write {queue.priority} or less, or leave it out.")
    if not lower:
        message = f"no queue has a lower priority than {name}, which has {queue.priority}"
        faults.add("out_of_range", path, message, "Raise its priority, or write preemption: none.")


def _links(document: PoolsDocument, faults: FaultList) -> None:
    """Links between switches go up: never in a circle, and none twice."""
    above: dict[str, set[str]] = {}
    for at, link in document.links.items():
        if not isinstance(link.source, str):
            continue
        path: Path = ("links", at)
        if link.to in above.get(link.source, ()):
            faults.add("duplicate", path, f"{link.source} to {link.to} is written already", "Keep one of the two.")
        circle = _way(above, link.to, link.source)
        if circle:
            message = f"{' → '.join([link.source, *circle])} goes in a circle"
            faults.add("cyclic", path, message, "Write each link once, from the nodes upwards.")
            continue
        above.setdefault(link.source, set()).add(link.to)


def _way(above: dict[str, set[str]], start: str, goal: str) -> list[str]:
    """A way up from start to goal, both included; empty where there is none."""
    ways = [[start]]
    seen = {start}
    while ways:
        way = ways.pop()
        if way[-1] == goal:
            return way
        for switch in sorted(above.get(way[-1], set()) - seen):
            seen.add(switch)
            ways.append([*way, switch])
    return []


def _capacity_keys(document: PoolsDocument, faults: FaultList) -> None:
    """A label that is nearly a kind is a kind misspelled."""
    for name, entry in document.capacity.items():
        for label in entry.model_extra or {}:
            if get_close_matches(label, (*KINDS, "special"), n=1, cutoff=0.75):
                hint = did_you_mean(label, (*KINDS, "special"))
                faults.add("unknown_key", ("capacity", name, label), "unknown key", hint)
