"""What happens to groups that there are. All or nothing: where one is not as it must be, none changes.

free ──► reserved ──► allocated ──► free (created) or gone
  └────────┴─────────────┴──► draining ──► as it was (resume), or gone
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lavalite.groups.engine.changes import Changes
from lavalite.groups.engine.picture import Picture
from lavalite.groups.errors import GroupStateError, UnknownGroupError
from lavalite.groups.records import GroupRecord, Holder, WaitingRecord


def deallocate(picture: Picture, component: str, group_ids: Sequence[str]) -> Changes:
    """Take these groups from the component: a created one is free then, or drains on; of others nothing is left.

    Raises UnknownGroupError, GroupStateError.
    """
    changes = Changes()
    for record in _known(picture, group_ids):
        if not record.component:
            raise GroupStateError(f"compute group {record.id} is {record.state}: no component has it")
        if record.component != component:
            raise GroupStateError(f"compute group {record.id} is of {record.component}, not of {component}")
        if record.state == "reserved":
            raise GroupStateError(f"compute group {record.id} is reserved", hint="Release the reservation.")
        _give_back(changes, record)
    return changes


def delete(picture: Picture, group_ids: Sequence[str]) -> Changes:
    """These groups, which nobody has, are no more. Raises UnknownGroupError, GroupStateError."""
    changes = Changes()
    for record in _known(picture, group_ids):
        if record.state == "reserved" or record.expires_at is not None:
            hint = "Release the reservation first."
            raise GroupStateError(f"compute group {record.id} is reserved", hint=hint)
        if record.component:
            raise GroupStateError(
                f"compute group {record.id} is {record.state}: {record.component} has it", hint="Deallocate it first."
            )
        changes.delete(record)
    return changes


def drain(picture: Picture, group_ids: Sequence[str]) -> Changes:
    """Nobody is given these groups until they are resumed. Raises UnknownGroupError, GroupStateError."""
    changes = Changes()
    for record in _known(picture, group_ids):
        if record.state == "draining":
            raise GroupStateError(f"compute group {record.id} is draining already")
        changes.put(record.model_copy(update={"state": "draining"}))
    return changes


def resume(picture: Picture, group_ids: Sequence[str]) -> Changes:
    """They are what they were before they drained. Raises UnknownGroupError, GroupStateError."""
    changes = Changes()
    for record in _known(picture, group_ids):
        if record.state != "draining":
            raise GroupStateError(f"compute group {record.id} is {record.state}, and not draining")
        state = "reserved" if record.expires_at is not None else "allocated" if record.component else "free"
        changes.put(record.model_copy(update={"state": state}))
    return changes


def release_reservation(picture: Picture, group_id: str) -> Changes:
    """Raises UnknownGroupError, GroupStateError."""
    changes = Changes()
    for record in _known(picture, [group_id]):
        if record.expires_at is None:
            raise GroupStateError(f"compute group {record.id} is {record.state}, and not reserved")
        _give_back(changes, record)
    return changes


def expire(picture: Picture, now: float, most: int) -> Changes:
    """Reservations and waiting asks that have run out are no more; up to so many of them."""
    changes = Changes()
    for key in picture.due(now)[:most]:
        record = picture.record(key)
        if isinstance(record, GroupRecord):
            _give_back(changes, record)
        elif isinstance(record, WaitingRecord):
            changes.delete(record)
    return changes


def end(picture: Picture, group_ids: Iterable[str]) -> Changes:
    """As if their components had given them back, whatever state they are in: whoever had them is dead. Groups that
    are not there any more are left out."""
    changes = Changes()
    for group_id in group_ids:
        if (record := picture.groups.get(group_id)) is not None:
            _give_back(changes, record)
    return changes


def remove(picture: Picture, group_ids: Iterable[str]) -> Changes:
    """Nothing is left of them, whatever they are: what they were to have could not be made, or is not there any more.
    Groups that are not there are left out."""
    changes = Changes()
    for group_id in group_ids:
        if (record := picture.groups.get(group_id)) is not None:
            changes.delete(record)
    return changes


def _give_back(changes: Changes, record: GroupRecord) -> None:
    """A created group is nobody's, and stays draining if it was; one that was made for its component is no more."""
    if not record.created:
        changes.delete(record)
        return
    changes.put(
        record.model_copy(
            update={
                "state": "draining" if record.state == "draining" else "free",
                "component": "",
                "holder": Holder(),
                "priority": 0,
                "lifetime": "process",
                "expires_at": None,
                "run": {},
            }
        )
    )


def _known(picture: Picture, group_ids: Sequence[str]) -> list[GroupRecord]:
    """Raises UnknownGroupError."""
    found = []
    for group_id in dict.fromkeys(group_ids):
        record = picture.groups.get(group_id)
        if record is None:
            raise UnknownGroupError(group_id)
        found.append(record)
    return found
