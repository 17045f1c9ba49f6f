"""What makes one kind of thing on this node, as the shell sees it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from lavalite.base.errors import LavaLiteError
from lavalite.wire.frames import PartOrder


class Key(NamedTuple):
    """What makes a thing the same thing, however often it is ordered."""

    part: str
    role: str
    incarnation: int

    @classmethod
    def of(cls, order: PartOrder) -> Key:
        return cls(order.part, order.role, order.incarnation)

    @property
    def slug(self) -> str:
        """Its name as a file and a unit: readable, and never that of another, whatever a part is called."""
        readable = re.sub("[^A-Za-z0-9]+", "_", self.part)[:40].strip("_")
        digest = hashlib.sha256("\0".join(map(str, self)).encode()).hexdigest()[:10]
        return f"{self.role}-{readable}-{digest}"


@dataclass(slots=True, frozen=True)
class Made:
    """What is to be told of a thing that is ready."""

    address: str = ""
    port: int = 0
    secret: str = ""
    device: str = ""
    path: str = ""


class NotYetError(LavaLiteError):
    """It is begun, and goes on by itself: it is to be asked for again. The message says how far it is."""


class PartRole(Protocol):
    """Each raises LavaLiteError with a reason for people, and may be called again at any time after a crash."""

    async def make(self, order: PartOrder) -> Made:
        """Make it as ordered; what stands of it already stays, and is changed where the order asks for more.

        Raises NotYetError for what takes long: nobody is kept waiting who wants it away meanwhile.
        """
        ...

    async def remove(self, order: PartOrder) -> None:
        """Take away all of it, also of what is half made, and of nothing."""
        ...

    async def check(self, order: PartOrder, made: Made) -> str:
        """Whether it still is as it was made: an empty text, or why it is lost. What can be mended is mended."""
        ...
