"""Where tasks hold something of those jobs that somebody wants to be near to, or apart from.

    watched    (kind, which) → how many unfinished jobs have a term about it; only of those anything is counted
    counts     (kind, which) → node → how many of its tasks hold something there
    repelled   (kind, which) → how many unfinished jobs demand to be apart from it: it keeps apart from them too
    repelling  (kind, which) → label → node → how many of their tasks hold something there

While no job has such terms nothing is watched, and nothing of this costs anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lavalite.control.tasks import JobState
from lavalite.model.affinity import ITSELF, Affinity, Subject

Shape = tuple[Any, ...]
"""What waiting jobs have in common, as the order knows them."""
Places = dict[str, int]
"""Node → tasks."""

NONE: Mapping[str, int] = {}


def subjects_of(job: JobState) -> tuple[Subject, ...]:
    """As what the job may be meant by others."""
    named: list[Subject] = [("job", job.id)]
    group = job.asks.group
    named += [("name", job.name)] if job.name else []
    named += [("group", group)] if group else []
    return tuple(named)


def about_jobs(job: JobState) -> list[Affinity]:
    """Its terms about jobs."""
    return [term for term in job.asks.affinity if not (term.labels or term.nodes)]


def repels(job: JobState) -> list[tuple[Subject, str]]:
    """From whom, within what, it demands to be apart: they keep apart from it too. Of itself that goes without."""
    return [
        (term.subject(job.id), term.within)
        for term in about_jobs(job)
        if term.anti and term.demanded and term.job != ITSELF
    ]


def means_itself(job: JobState) -> bool:
    """Whether where its own tasks are matters to its others: then they are placed one by one."""
    mine = subjects_of(job)
    return any(term.subject(job.id) in mine for term in about_jobs(job))


@dataclass(slots=True)
class Neighbours:
    """See the module's docstring."""

    watched: dict[Subject, int] = field(default_factory=dict)
    counts: dict[Subject, Places] = field(default_factory=dict)
    repelled: dict[Subject, int] = field(default_factory=dict)
    repelling: dict[Subject, dict[str, Places]] = field(default_factory=dict)
    _sleeping: dict[Subject, set[Shape]] = field(default_factory=dict)
    """Shapes that sleep, and for which it may make a difference where its tasks are."""

    def watch(self, job: JobState) -> tuple[set[Subject], set[Subject]]:
        """It has terms from now on. Answers with what is watched, and what is repelled, only since now."""
        watched, repelled = set(), set()
        for term in about_jobs(job):
            subject = term.subject(job.id)
            self.watched[subject] = self.watched.get(subject, 0) + 1
            if self.watched[subject] == 1:
                watched.add(subject)
        for subject, _ in repels(job):
            self.repelled[subject] = self.repelled.get(subject, 0) + 1
            if self.repelled[subject] == 1:
                repelled.add(subject)
        return watched, repelled

    def unwatch(self, job: JobState) -> None:
        """It has ended."""
        for term in about_jobs(job):
            _less(self.watched, subject := term.subject(job.id))
            if subject not in self.watched:
                self.counts.pop(subject, None)
                self._sleeping.pop(subject, None)
        for subject, _ in repels(job):
            _less(self.repelled, subject)

    def move(self, job: JobState, node: str, tasks: int) -> list[Shape] | None:
        """So many more of its tasks hold something there. Answers with the shapes to be woken; None where nothing
        that matters to anybody has changed. See `concerns`.
        """
        woken: list[Shape] = []
        matters = False
        for subject in subjects_of(job):
            if subject in self.watched and _add(self.counts.setdefault(subject, {}), node, tasks):
                matters = True
                woken += self._sleeping.pop(subject, ())
        for subject, within in repels(job):
            if _add(self.repelling.setdefault(subject, {}).setdefault(within, {}), node, tasks):
                matters = True
                woken += self._sleeping.pop(subject, ())
            if not self.repelling[subject][within]:
                del self.repelling[subject][within]
            if not self.repelling[subject]:
                del self.repelling[subject]
        return woken if matters else None

    def concerns(self, job: JobState) -> bool:
        """Whether somebody goes by where the job's tasks are."""
        return bool(self.watched) and (bool(job.asks.affinity) or any(s in self.watched for s in subjects_of(job)))

    def of(self, subject: Subject) -> Mapping[str, int]:
        """Node → how many of its tasks hold something there."""
        return self.counts.get(subject, NONE)

    def against(self, job: JobState) -> Iterator[tuple[str, Places]]:
        """(label, nodes) where those are who demand to be apart from the job."""
        for subject in subjects_of(job) if self.repelling else ():
            yield from self.repelling.get(subject, {}).items()

    def mark_of(self, job: JobState) -> tuple[object, ...]:
        """What sets the job apart from others that ask for the same; empty if nothing does."""
        if not (job.asks.affinity or self.repelled):
            return ()
        about = {term.subject(job.id) for term in about_jobs(job)}
        terms = tuple(term.model_dump_json() for term in job.asks.affinity)
        named = tuple(s for s in subjects_of(job) if s in about or s in self.repelled)
        return ("affinity", terms, named) if terms or named else ()

    def sleeps(self, job: JobState, shape: Shape) -> None:
        """The job's shape sleeps: it is to be woken when what its place depends on moves."""
        for subject in {*(t.subject(job.id) for t in about_jobs(job)), *self._repelled(job)}:
            self._sleeping.setdefault(subject, set()).add(shape)

    def is_bound(self, job: JobState) -> bool:
        """Whether places are closed to it, or may be, for where others are: nobody knows that beforehand."""
        return any(term.demanded for term in about_jobs(job)) or bool(self._repelled(job))

    def _repelled(self, job: JobState) -> list[Subject]:
        return [s for s in subjects_of(job) if s in self.repelled] if self.repelled else []

    def recount(self, runs: Iterable[tuple[JobState, str]], only: set[Subject] | None = None) -> None:
        """Count (job, node) of all tasks that hold something anew; `only` what is watched since now."""
        subjects = self.watched.keys() if only is None else only
        for subject in subjects:
            self.counts.pop(subject, None)
        if only is None:
            self.repelling.clear()
        for job, node in runs:
            for subject in subjects_of(job):
                if subject in subjects:
                    _add(self.counts.setdefault(subject, {}), node, 1)
            for subject, within in repels(job) if only is None else ():
                _add(self.repelling.setdefault(subject, {}).setdefault(within, {}), node, 1)

    def faults(self, runs: Iterable[tuple[JobState, str]]) -> Iterator[str]:
        """Where what is counted is not what there is: a bug."""
        anew = Neighbours(watched=dict(self.watched))
        anew.recount(runs)
        for what, counted, there_is in (
            ("tasks", _without_empty(self.counts), _without_empty(anew.counts)),
            ("repelling tasks", self.repelling, anew.repelling),
        ):
            if counted != there_is:
                yield f"affinity counts {what} {counted}, and there are {there_is}"


def _add(places: Places, node: str, tasks: int) -> bool:
    """Whether there were none before, or are none any more."""
    before = places.get(node, 0)
    if before + tasks:
        places[node] = before + tasks
    else:
        places.pop(node, None)
    return not before or not before + tasks


def _less(counts: dict[Subject, int], subject: Subject) -> None:
    counts[subject] -= 1
    if not counts[subject]:
        del counts[subject]


def _without_empty(counts: dict[Subject, Places]) -> dict[Subject, Places]:
    return {subject: places for subject, places in counts.items() if places}
