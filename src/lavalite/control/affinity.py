"""What the places of other jobs, and labels, say of each row for one job's next task.

    demanded    near: only rows by such tasks are open     apart: only rows by none of them; and who demands to be
                                                           apart from this job is kept apart from it too
    preferred   a row has the weights of all that is met there; the policy decides among those that have most

By a task is: on its node, or with `within` on one that has a value of that label in common with it. A node without
the label is by itself. Where nothing of what a job is to be near to is there, and it is itself meant, its first task
goes anywhere. Labels that are demanded are no part of this: they stand with the pools (placement.classes).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from lavalite.control.neighbours import about_jobs, subjects_of
from lavalite.control.state import ClusterState
from lavalite.control.tasks import JobState
from lavalite.model.affinity import Affinity
from lavalite.placement.columns import Bools, Ints
from lavalite.placement.filters import Filter
from lavalite.placement.ranking import Leaning
from lavalite.placement.reasons import Reason


def leaning(state: ClusterState, job: JobState) -> Leaning | None:
    """What is open to the job's next task and what it prefers; None where nothing near matters to it."""
    if not (job.spec.affinity or state.neighbours.repelling):
        return None
    turned_away, met = [closed for _, closed in filters(state, job)], _met(state, job)
    if not turned_away and met is None:
        return None
    return Leaning(~np.logical_or.reduce(turned_away) if turned_away else None, met)


def filters(state: ClusterState, job: JobState) -> list[Filter]:
    """Which rows are closed to it for where others are, by the reason."""
    not_near: list[Bools] = []
    not_apart = [_by(state, places, within) for within, places in state.neighbours.against(job) if places]
    for term in about_jobs(job) if job.spec.affinity else ():
        if not term.demanded:
            continue
        by = _by(state, state.neighbours.of(term.subject(job.id)), term.within)
        if term.anti:
            not_apart.append(by)
        elif not _begins(state, job, term):
            not_near.append(~by)
    found: list[Filter] = []
    if not_near:
        found.append((Reason.NOT_NEAR, np.logical_or.reduce(not_near)))
    if not_apart:
        found.append((Reason.NOT_APART, np.logical_or.reduce(not_apart)))
    return found


def sentences(state: ClusterState, job: JobState) -> Iterator[str]:
    """What of the jobs that it is to be near to is not there, for people."""
    for term in about_jobs(job):
        subject = term.subject(job.id)
        if not term.demanded or term.anti or state.neighbours.of(subject) or _begins(state, job, term):
            continue
        other = state.jobs.get(subject[1]) if isinstance(subject[1], int) else None
        if subject[0] == "job" and (other is None or not other.unfinished):
            yield f"It is to be {term.text()}, and that has ended; this can never be met."
        else:
            yield f"It is to be {term.text()}, and no task of that is placed."


def _begins(state: ClusterState, job: JobState, term: Affinity) -> bool:
    """Whether it is one of those that it is to be near to, and the first of them."""
    subject = term.subject(job.id)
    return subject in subjects_of(job) and not state.neighbours.of(subject)


def _met(state: ClusterState, job: JobState) -> Ints | None:
    """The weights of all preferred terms that are met on each row; None where none makes a difference."""
    met: Ints | None = None
    for term in job.spec.affinity:
        if term.weight is None:
            continue
        if (selector := term.selector()) is not None:
            here = state.columns.pool(state.selection(selector))
        else:
            here = _by(state, state.neighbours.of(term.subject(job.id)), term.within)
        weights = (here ^ term.anti) * np.int64(term.weight)
        met = weights if met is None else met + weights
    return None if met is None or met.min(initial=0) == met.max(initial=0) else met


def _by(state: ClusterState, nodes: Iterable[str], within: str) -> Bools:
    """The rows that are by these nodes."""
    rows: set[int] = set()
    for name in nodes:
        node = state.nodes.get(name)
        values = node.labels.get(within, ()) if node is not None and within else ()
        for value in values:
            rows.update(state.rows_labelled(within, value))
        row = state.columns.row(name)
        if row is not None:
            rows.add(row)
    return _mask(state, list(rows))


def _mask(state: ClusterState, rows: list[int]) -> Bools:
    mask = np.zeros(len(state.columns), dtype=np.bool_)
    mask[rows] = True
    return mask
