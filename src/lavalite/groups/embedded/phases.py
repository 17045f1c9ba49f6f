"""Commitments of groups that need something beside them: what is written before it is made or removed, and after.

    allocate    written, not ready ──► made ──► written, ready
    give back   written, not ready ──► removed ──► deleted

So whatever happens between, there is a record that says so; who finds one whose writer is dead removes what there is
and gives the commitment back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lavalite.groups.engine.changes import Changes
from lavalite.groups.engine.picture import Picture
from lavalite.groups.errors import UnknownGroupError
from lavalite.groups.records import GROUPS, GroupRecord, Holder


@dataclass(slots=True)
class Phases:
    """What is left to do after the first writing: groups to be made, as written and with their holder then, and
    groups to be removed."""

    to_make: list[tuple[GroupRecord, Holder]] = field(default_factory=list)
    to_remove: list[GroupRecord] = field(default_factory=list)


def first_phase(
    changes: Changes, needs_making: Callable[[GroupRecord], bool], me: Holder, now: float, *, remakes: bool = True
) -> tuple[Changes, Phases]:
    """What is to be written first. `remakes`: groups that only change their state need making too."""
    phases = Phases()
    if not any(map(needs_making, changes.groups if remakes else ())) and not any(map(needs_making, changes.gone)):
        return changes, phases
    written = Changes()
    for key, record in changes.records.items():
        if not key.startswith(GROUPS):
            written.records[key], written.puts[key] = record, changes.puts[key]
    written.deletes += [key for key in changes.deletes if not key.startswith(GROUPS)]
    for record in changes.groups:
        if remakes and needs_making(record):
            unready = record.model_copy(update={"ready": False, "unready_since": now, "holder": me})
            phases.to_make.append((unready, record.holder))
            written.put(unready)
        else:
            written.put(record)
    for record in changes.gone:
        if needs_making(record):
            unready = record.model_copy(update={"ready": False, "unready_since": now, "holder": me})
            phases.to_remove.append(unready)
            written.put(unready)
        else:
            written.delete(record)
    return written, phases


def made(picture: Picture, before: GroupRecord, after: GroupRecord, holder: Holder) -> Changes:
    """That the group is ready: with what making it has changed of its record, over what others have. Raises
    UnknownGroupError."""
    now = picture.groups.get(before.id)
    if now is None:
        raise UnknownGroupError(before.id)
    was = dict(before)
    learned = {name: value for name, value in dict(after).items() if name not in was or was[name] != value}
    learned.pop("shares", None)  # what is committed is what was decided
    changes = Changes()
    changes.put(now.model_copy(update={**learned, "ready": True, "holder": holder}))
    return changes
