"""What is random in a scenario: a length of time, drawn from a distribution. One seed, equal draws.

Sources are named, so that what is drawn for one job does not hang on how many others there are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True, frozen=True)
class Draw:
    """`constant` is `first`; `uniform` from `first` to `second`; `exponential` has the mean `first`; `lognormal` the
    median `first` and, of its logarithm, the deviation `second`. In seconds; never below 0."""

    kind: Literal["constant", "uniform", "exponential", "lognormal"]
    first: float
    second: float = 0.0

    def seconds(self, source: random.Random) -> float:
        match self.kind:
            case "constant":
                return self.first
            case "uniform":
                return source.uniform(self.first, self.second)
            case "exponential":
                return source.expovariate(1 / self.first) if self.first else 0.0
            case "lognormal":
                return self.first * source.lognormvariate(0.0, self.second)


def constant(seconds: float) -> Draw:
    return Draw("constant", seconds)


def source_of(seed: int, *names: object) -> random.Random:
    """A source of its own for whatever is named, equal in every process."""
    return random.Random(f"{seed}/" + "/".join(map(str, names)))  # noqa: S311  nothing here is a secret
