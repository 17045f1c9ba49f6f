"""What a role gives back for a part that is there."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, frozen=True)
class Made:
    """Where the part is: of a virtual machine its address, its ssh port, and the socket of its console."""

    address: str = ""
    port: int = 0
    secret: str = field(default="", repr=False)
    device: str = ""
    path: str = ""
