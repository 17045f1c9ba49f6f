"""Control's effects as frames for an agent. Field by field; no decision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from lavalite.control.actions import Acknowledge, AttemptStart, PartOrdered, SendDispatch, SendParts, SendStop
from lavalite.wire.frames import AnyFrame, Attempt, Dispatch, EpochPair, PartOrder, PartsHere, ReportAck, Stop

FRAME_BYTES = 1024 * 1024
"""Attempts are put in one frame up to about so many bytes: well below the most that a frame may have."""


def frame_of(effect: SendDispatch | SendStop | SendParts | Acknowledge, epoch: EpochPair) -> list[AnyFrame]:
    if isinstance(effect, SendDispatch):
        return [Dispatch(epoch=epoch, attempts=group) for group in _grouped(effect.attempts)]
    if isinstance(effect, SendParts):
        return [PartsHere(epoch=epoch, orders=list(map(_part, effect.orders)))]
    if isinstance(effect, SendStop):
        return [
            Stop(
                epoch=epoch,
                id=str(effect.id),
                signal=effect.signal,
                grace_seconds=effect.grace_seconds,
                reason=effect.reason,
            )
        ]
    return [ReportAck(epoch=epoch, seq=effect.seq)]


def _part(order: PartOrdered) -> PartOrder:
    return PartOrder.model_validate({field.name: getattr(order, field.name) for field in fields(order)})


def _grouped(starts: tuple[AttemptStart, ...]) -> Iterator[list[Attempt]]:
    group: list[Attempt] = []
    size_bytes = 0
    for start in starts:
        attempt = _attempt(start)
        attempt_bytes = len(attempt.model_dump_json())
        if group and size_bytes + attempt_bytes > FRAME_BYTES:
            yield group
            group, size_bytes = [], 0
        group.append(attempt)
        size_bytes += attempt_bytes
    if group:
        yield group


def _attempt(start: AttemptStart) -> Attempt:
    return Attempt(
        id=str(start.id),
        journal_id=start.journal_id,
        command=list(start.command),
        cwd=start.cwd,
        environment=start.environment,
        stdout_path=start.stdout_path,
        stderr_path=start.stderr_path,
        user=start.user,
        uid=start.uid,
        gid=start.gid,
        cpu_milli=start.cpu_milli,
        memory_bytes=start.memory_bytes,
        devices=start.devices,
        walltime_seconds=start.walltime_seconds,
        fence_after_seconds=start.fence_after_seconds,
        host=start.host,
    )
