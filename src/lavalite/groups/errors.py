"""What goes wrong with compute groups, as types. Where one is raised nothing has changed.

LavaLiteError
├── InputError                      unknown keys, impossible sums, a name with odd characters: all faults at once
│   └── UnknownGroupError           no group of that id, or none any more
├── ConflictError
│   ├── GroupStateError             the group's state stands against it: deleting what is allocated, draining twice
│   ├── ConflictingAllocationError  others were quicker for as long as we tried
│   └── ReservationError            it has run out, or is for another component
├── InsufficientResourcesError      it does not fit now; `reasons` says why, and `ever` whether it could at all
├── BusyError                       the API asks us to slow down (429)
├── UnreachableError                nobody answers: the store, the cluster, the API server
└── NotOfferedError                 this provider cannot do that at all
"""

from __future__ import annotations

from collections.abc import Mapping

from lavalite.base.errors import ConflictError, LavaLiteError
from lavalite.providers.base import UnknownGroupError as UnknownGroupError


class GroupStateError(ConflictError):
    default_code = "group_state"


class ConflictingAllocationError(ConflictError):
    default_code = "conflicting_allocation"


class ReservationError(ConflictError):
    default_code = "reservation"


class InsufficientResourcesError(LavaLiteError):
    """`reasons`: how many nodes stand against it, by reason. `ever`: whether it would fit if all were free."""

    default_code = "insufficient_resources"

    def __init__(
        self, message: str, *, reasons: Mapping[str, int] | None = None, ever: bool = True, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.reasons = dict(reasons or {})
        self.ever = ever
