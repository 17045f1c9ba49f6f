"""Decay with a half-life in whole numbers, so that each leader comes to the same amounts, whatever its machine.

    decayed(amount, elapsed)   amount × 2^(-elapsed / half-life)
    accrued(rate, elapsed)     ∫ rate × 2^(-s / half-life) ds over the time elapsed: use that decays while it goes on

Factors are fixed-point numbers of 64 bits. The powers 2^(-1/2), 2^(-1/4), … are square roots of each other.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

ONE = 1 << 64
STEPS_BITS = 40
"""Into so many bits a half-life is divided."""
INVERSE_LN2 = 26613026195688644983
"""1 / ln 2, times ONE."""


def _roots() -> tuple[int, ...]:
    """2^(-1/2), 2^(-1/4), 2^(-1/8), …, times ONE."""
    roots, last = [], ONE >> 1
    for _ in range(STEPS_BITS):
        last = isqrt(last * ONE)
        roots.append(last)
    return tuple(roots)


_ROOTS = _roots()


@lru_cache(maxsize=1024)
def factor(elapsed: int, half_life: int) -> int:
    """2^(-elapsed / half-life), times ONE. Both in the same unit, and not negative."""
    whole, rest = divmod(elapsed, half_life)
    if whole >= 64:
        return 0
    bits = (rest << STEPS_BITS) // half_life
    left = ONE >> whole
    for place, root in enumerate(_ROOTS, 1):
        if bits >> (STEPS_BITS - place) & 1:
            left = left * root >> 64
    return left


def decayed(amount: int, elapsed: int, half_life: int) -> int:
    """What is left of an amount."""
    return amount * factor(elapsed, half_life) >> 64


def accrued(rate: int, elapsed: int, half_life: int) -> int:
    """What use at a steady rate, per unit of time, comes to after it has decayed meanwhile."""
    gone = ONE - factor(elapsed, half_life)
    return rate * half_life * gone * INVERSE_LN2 >> 128
