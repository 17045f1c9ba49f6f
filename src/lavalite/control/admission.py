"""What is said no to before anything changes. Every fault is found, named, and told with the way out."""

from __future__ import annotations

from lavalite.base.errors import Fault, InputError, UnknownNameError
from lavalite.control import limits, quotas
from lavalite.control.explain import asked
from lavalite.control.hosts.holding import gpu_nodes, offered
from lavalite.control.state import ClusterState
from lavalite.control.supply import takes_work
from lavalite.control.tasks import JobState
from lavalite.ledger.book import FLOATING
from lavalite.model.affinity import ITSELF, Affinity
from lavalite.model.host import VM
from lavalite.model.job import Dependency, JobSpec, Request
from lavalite.model.resources import GPU, WHOLE
from lavalite.placement.columns import whole_gpus
from lavalite.placement.filters import never_fits
from lavalite.placement.registry import POLICIES


def admit(state: ClusterState, spec: JobSpec, now: float) -> None:
    """Raise InputError with every fault of a job that could not run here, or UnknownNameError for a bad name."""
    faults = [*_names(state, spec), *(fault for each in _requests(spec) for fault in _amounts(*each))]
    faults += [*_exclusive(spec), *_limits(state, spec), *_quotas(state, spec)]
    if not faults:
        refuse_if_never(state, spec, now)
        return
    error = UnknownNameError if faults[0].code == "unknown_name" else InputError
    raise error(faults=faults)


def refuse_if_never(state: ClusterState, spec: JobSpec, now: float) -> None:
    """Raise InputError where no node known, or the host named, could take one task even if it were idle.

    Where no node is known at all, everything is let in: they may be about to come.
    """
    host = state.hosts.get(spec.host)
    if not state.nodes or (host is not None and not takes_work(host)):
        return
    state.refresh_columns(now)
    hint = "Ask for less, or for another pool; `lavalite nodes` shows what there is."
    faults = []
    for (piece, _), field in zip(spec.pieces(), _fields(spec), strict=True):
        why = never_fits(state.columns, state.request_class(piece))
        if why is not None:
            what = asked(piece.request, state.pools_of(piece), spec.host)
            told = _beside_hint(state, piece) or hint
            faults.append(Fault("never_fits", f"{what} can never be had here: {why.sentence()}", field, told))
    if faults:
        raise InputError(faults=faults)


def _beside_hint(state: ClusterState, spec: JobSpec) -> str:
    """How to ask for GPUs that the host has on other nodes; empty where that would be of no use."""
    host = state.hosts.get(spec.host)
    if host is None or not (elsewhere := gpu_nodes(host)):
        return ""
    anchor, _ = offered(host).get(GPU, (0, []))
    if spec.request.gpu_milli <= anchor:
        return ""
    named = ", ".join(f"{len(devices)} on {node}" for node, devices in sorted(elsewhere.items()))
    here = f"{anchor // WHOLE} on its anchor and {named}" if anchor else named
    return f"{spec.host} has {here}, and one process uses those of one node: ask by --part, a task for each node."


def _fields(spec: JobSpec) -> list[str]:
    """What each of its requests is called: that of a part by the part's name."""
    return ["request"] if spec.parts is None else [f"parts.{part.name}.request" for part in spec.parts]


def _requests(spec: JobSpec) -> list[tuple[str, Request]]:
    return [(field, piece.request) for field, (piece, _) in zip(_fields(spec), spec.pieces(), strict=True)]


def find_job(state: ClusterState, job_id: int) -> JobState:
    """The job. Raises UnknownNameError."""
    job = state.jobs.get(job_id)
    if job is None:
        raise UnknownNameError(
            f"there is no job {job_id}",
            field="job",
            hint="It may have ended long ago; `lavalite jobs` lists those that are known.",
        )
    return job


def _names(state: ClusterState, spec: JobSpec) -> list[Fault]:
    faults = []
    if spec.queue and spec.queue != state.default_queue and spec.queue not in state.specs.queues:
        faults.append(_unknown("queue", spec.queue, "queue", sorted(state.specs.queues) or [state.default_queue]))
    if spec.host and spec.host not in state.hosts:
        faults.append(_unknown("logical host", spec.host, "host", sorted(state.hosts)))
    elif spec.host and state.hosts[spec.host].executor == VM:
        hint = "Reach it by ssh, or with Ansible; jobs run on hosts whose executor is bare."
        message = f"{spec.host} is a virtual machine, and jobs do not run inside of those"
        faults.append(Fault("not_bare", message, "host", hint))
    faults += _reservation(state, spec)
    if spec.policy and spec.policy not in POLICIES:
        faults.append(_unknown("policy", spec.policy, "policy", list(POLICIES)))
    for field, request in _requests(spec):
        faults += _pools_and_floating(state, request, field)
    faults += [fault for term in spec.affinity for fault in _affinity(state, spec, term)]
    faults += [fault for d in spec.depends if (fault := _dependency(state, spec, d)) is not None]
    return faults


def _pools_and_floating(state: ClusterState, request: Request, field: str) -> list[Fault]:
    """What is wrong with the names in a request."""
    faults = []
    for kind, pool in request.pools.items():
        known = state.specs.pools.get(pool)
        if known is None:
            faults.append(_unknown("pool", pool, f"{field}.pools.{kind}", sorted(state.specs.pools)))
        elif kind not in known.kinds:
            message = f"pool {pool} has no {kind}"
            faults.append(Fault("bad_pool", message, f"{field}.pools.{kind}", f"It has {', '.join(known.kinds)}."))
    for kind in request.special:
        if pool := state.floating_pool(kind):
            message = f"{kind} is of no node: it floats, in pool {pool}"
            faults.append(Fault("bad_input", message, f"{field}.special.{kind}", "Ask for it as floating."))
    for kind, amount in request.floating.items():
        capacity = state.book.capacity(FLOATING, kind)
        if amount > capacity:
            message = f"{amount} {kind} asked, the floating pools have {capacity}"
            faults.append(Fault("never_fits", message, f"{field}.floating.{kind}", "Ask for less."))
    return faults


def _affinity(state: ClusterState, spec: JobSpec, term: Affinity) -> list[Fault]:
    """What is wrong with a term of its affinity."""
    faults = []
    if spec.host:
        message = "a logical host says where the job runs, and so does an affinity"
        faults.append(Fault("bad_input", message, "affinity", "Leave one of them out."))
    if term.job and term.job not in state.jobs:
        later = " yet" if term.job > state.last_job_id else ""
        hint = "Submit that one first, and name its number." if later else "It may have ended long ago; name a job."
        faults.append(Fault("unknown_name", f"there is no job {term.job}{later}", "affinity", hint))
    if term.job == ITSELF and spec.gang is not None:
        hint = "Say so by the gang's tasks per node, or by what it is to be within."
        faults.append(Fault("bad_input", "a gang is placed at once, and is not near itself yet", "affinity", hint))
    if term.demanded and term.anti and term.model_copy(update={"anti": not term.anti}) in spec.affinity:
        hint = "Leave one of them out."
        faults.append(Fault("bad_input", f"{term.text()}, and the contrary, exclude each other", "affinity", hint))
    if term.within and state.nodes and not any(term.within in n.labels for n in state.nodes.values()):
        known = sorted({label for node in state.nodes.values() for label in node.labels})
        faults.append(_unknown("node with a label", term.within, "affinity", known))
    return faults


def _dependency(state: ClusterState, spec: JobSpec, dependency: Dependency) -> Fault | None:
    """What is wrong with what it depends on. Only what was there before can be named, so no circle can come about."""
    other = state.jobs.get(dependency.job)
    if other is None:
        if dependency.job > state.last_job_id:
            message = f"there is no job {dependency.job} yet, and a job never waits for itself or for a later one"
            return Fault("unknown_name", message, "depends", "Submit that one first, and name its number.")
        hint = "It may have ended long ago; depend on a job that is still known."
        return Fault("unknown_name", f"there is no job {dependency.job}", "depends", hint)
    named = (
        dependency.tasks.indices() if dependency.tasks is not None else spec.indices() if dependency.each else None
    )
    if named is None or _within(named, other.indices):
        return None
    has = f"has the tasks {other.spec.array.text()}" if other.spec.array else "is no array, and has the one task 0"
    if other.spec.parts is not None:
        has = f"has the tasks 0-{other.indices[-1]}"
    asked = f"this one goes from {named[0]} to {named[-1]}" if dependency.each else f"not all of {dependency.text()}"
    hint = (
        "With [*], each index of this job must be one of that job too." if dependency.each else "Name some of those."
    )
    return Fault("out_of_range", f"job {dependency.job} {has}: {asked}", "depends", hint)


def _within(some: range, all_of_them: range) -> bool:
    """Whether each of some is one of them all. Both have at least one."""
    if some[0] not in all_of_them or some[-1] not in all_of_them:
        return False
    return len(some) == 1 or some.step % all_of_them.step == 0


def _reservation(state: ClusterState, spec: JobSpec) -> list[Fault]:
    """What is wrong with the reservation that it names, for good."""
    if not spec.reservation:
        return []
    kept = state.reservations.get(spec.reservation)
    if kept is None:
        return [_unknown("reservation", spec.reservation, "reservation", sorted(state.reservations))]
    faults = []
    if not kept.lets_in(spec.user):
        hint = "Leave it out, or ask its owner."
        faults.append(Fault("not_allowed", f"{kept.name} is not for {spec.user}", "reservation", hint))
    if kept.component and kept.component != spec.component:
        message = f"{kept.name} is kept for component {kept.component}"
        faults.append(Fault("not_allowed", message, "reservation", "Leave it out."))
    if spec.host:
        hint = "Leave one of them out."
        faults.append(Fault("bad_input", "a host and a reservation exclude each other", "reservation", hint))
    for field, request in _requests(spec):
        for kind, amount in request.amounts().items():
            if amount > (most := kept.amounts.get(kind, 0)):
                message = (
                    f"a task asks for more {kind} than {kept.name} keeps on a node: {amount}, and that is {most}"
                )
                faults.append(Fault("never_fits", message, field, "Ask for less."))
    if spec.walltime_seconds is not None and spec.walltime_seconds > kept.end - kept.start:
        message = f"the job may take longer than {kept.name} lasts"
        faults.append(Fault("over_limit", message, "walltime_seconds", "Ask for less."))
    return faults


def _amounts(field: str, request: Request) -> list[Fault]:
    faults = []
    whole = request.gpu_milli >= WHOLE and whole_gpus(request.gpu_milli)
    if not whole_gpus(request.gpu_milli):
        message = f"{request.gpu_milli} milli-GPUs are neither whole GPUs nor a part of one"
        faults.append(Fault("bad_amount", message, f"{field}.gpu_milli", "Ask for 1000, 2000, …, or less than 1000."))
    if not request.gpu_milli and (request.gpu_model or request.gpu_memory_bytes):
        message = "a GPU is described, but none is asked for"
        faults.append(Fault("bad_amount", message, f"{field}.gpu_milli", "Say how many, in thousandths."))
    if request.gpu_mig and not whole:
        message = f"{request.gpu_mig} is a MIG instance, and such are given out whole"
        faults.append(Fault("bad_amount", message, f"{field}.gpu_mig", "Say how many: 1, 2, …"))
    if request.gpu_mig and request.gpu_topology:
        message = f"{request.gpu_topology} is between whole GPUs, and MIG instances are asked for"
        faults.append(Fault("bad_input", message, f"{field}.gpu_topology", "Leave one of them out."))
    if request.gpu_topology and request.gpu_milli < 2 * WHOLE:
        message = f"{request.gpu_topology} is between GPUs, and fewer than two whole ones are asked for"
        faults.append(Fault("bad_amount", message, f"{field}.gpu_topology", "Ask for two or more, or leave it out."))
    return faults


def _exclusive(spec: JobSpec) -> list[Fault]:
    """What a task cannot also ask for that is to have its node for itself."""
    asking = [field for field, request in _requests(spec) if request.exclusive]
    if not asking:
        return []
    wrong = []
    if spec.host:
        wrong.append(f"logical host {spec.host} is a part of its node, and a task is to have a node for itself")
    if spec.reservation:
        wrong.append(f"reservation {spec.reservation} keeps amounts on its nodes, and no node for one task alone")
    here = (t for t in spec.affinity if t.demanded and not (t.anti or t.within or t.labels or t.nodes))
    wrong += [f"a task is to have its node for itself, and to be {term.text()}" for term in here]
    hint = "Leave one of them out."
    faults = [Fault("bad_input", message, f"{field}.exclusive", hint) for field in asking for message in wrong]
    alone = sum(part.tasks for part in spec.parts or () if part.request.exclusive)
    tasks = len(spec.indices()) if spec.parts is None else alone + (alone < len(spec.indices()))
    most = spec.gang.nodes_most if spec.gang is not None else None
    if most is not None and most < tasks:
        each = f"{tasks} tasks are to start together, each on a node for itself"
        if spec.parts is not None:
            each = f"the parts need {tasks} nodes, since tasks of {', '.join(asking)} have one each for themselves"
        message = f"{each}, and on {most} nodes at most"
        faults.append(Fault("bad_input", message, "gang", f"Allow {tasks} nodes."))
    return faults


def _limits(state: ClusterState, spec: JobSpec) -> list[Fault]:
    queue, faults = spec.queue or state.default_queue, _gang(state, spec)
    limit = state.queue(queue).walltime_seconds
    if limit is not None and spec.walltime_seconds is not None and spec.walltime_seconds > limit:
        message = f"{spec.walltime_seconds} s asked, queue {queue} allows {limit} s"
        faults.append(Fault("over_limit", message, "walltime_seconds", "Ask for less, or take another queue."))
    tasks = len(spec.indices()) if spec.gang is not None else 1
    for found in limits.applying(state, spec, queue):
        amount = found.each * (tasks // found.tasks)
        if amount > found.most:
            who = "one task asks for" if tasks == 1 else f"{tasks} tasks that start together ask for"
            message = f"{found.whose()}, and {who} {limits.text(found.kind, amount)}"
            faults.append(Fault("over_limit", message, "request", "Ask for less, or take another queue or pool."))
    return faults


def _quotas(state: ClusterState, spec: JobSpec) -> list[Fault]:
    """What the job's group could not have even if nobody held anything."""
    faults = []
    for kind, pools in quotas.unnamed(state, spec).items():
        message = f"no pool is named for {kind}, and pools count who takes it"
        option = f"--pool {kind}=" if spec.parts is None else f"in the part, pool={kind}:"
        hint = f"Name one: {' or '.join(f'{option}{pool}' for pool in pools)}."
        faults.append(Fault("no_pool", message, f"request.pools.{kind}" if spec.parts is None else "parts", hint))
    if kind := quotas.too_much_in_all(state, spec, ever=True):
        message = f"group {spec.group or 'of nobody'} may not borrow as much {kind} as all parts ask for together"
        faults.append(Fault("no_quota", message, "parts", "Ask for less, or submit it for another group."))
    for pool, kind in quotas.outside(state, spec):
        known = sorted(group for group, quota in state.specs.pools[pool].quota.items() if kind in quota)
        most = quotas.most_ever(state, pool, kind, spec.group)
        what = f"group {spec.group or 'of nobody'} may have {limits.text(kind, most)} of pool {pool}"
        hint = f"Ask for less, or submit it for a group that has a quota: {', '.join(known)}."
        who = "one task asks" if spec.parts is None else "its tasks together ask"
        faults.append(Fault("no_quota", f"{what}, and {who} for more", "group", hint))
    return faults


def _gang(state: ClusterState, spec: JobSpec) -> list[Fault]:
    if spec.gang is None:
        return []
    faults, tasks = [], len(spec.indices())
    if spec.host and (spec.gang.nodes_least > 1 or spec.gang.within) and not state.places.of(spec.host):
        hint = "Leave one of them out."
        faults.append(Fault("bad_input", "a logical host is on one node, and the gang is to span more", "gang", hint))
    at_once: dict[str, int] = {}
    for piece, each in spec.pieces():
        for kind, amount in piece.request.floating.items():
            at_once[kind] = at_once.get(kind, 0) + amount * each * (tasks // spec.tasks_counted)
    for kind, amount in at_once.items():
        if amount > (capacity := state.book.capacity(FLOATING, kind)):
            message = f"{amount} {kind} asked at once, the floating pools have {capacity}"
            field = f"request.floating.{kind}" if spec.parts is None else "parts"
            faults.append(Fault("never_fits", message, field, "Ask for less."))
    return faults


def _unknown(what: str, name: str, field: str, known: list[str]) -> Fault:
    hint = f"There {'is' if len(known) == 1 else 'are'} {', '.join(known[:20])}." if known else "There is none yet."
    return Fault("unknown_name", f"there is no {what} {name}", field, hint)
