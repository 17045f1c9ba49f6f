"""What providers measure: how much what they have is used, and whether GPUs are well."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, frozen=True)
class Utilization:
    """From 0 to 1, but for temperatures, in degrees Celsius, which say so in their name.

    `health` is by the id of a GPU: empty, or absent, where it is well, else a sentence that says what it is sick of.
    """

    nodes: dict[str, dict[str, float]] = field(default_factory=dict)
    gpus: dict[str, dict[str, float]] = field(default_factory=dict)
    health: dict[str, str] = field(default_factory=dict)
