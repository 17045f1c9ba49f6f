"""Amounts as people write them, and as we keep them: exact integers in the kind's unit (model.resources).

    cpu, gpu   16   0.5                            milli-cores, milli-GPUs
    bytes      256GiB   3.5TiB   1.5GB             binary (KiB … EiB) and decimal (kB … EB) units
    bandwidth  25Gbit/s                            bits a second, decimal units
    duration   15m   1h30m   90s   2d              seconds
    share      50%                                 per mille

What is below a byte, a bit a second or a second is dropped, never rounded up; a thousandth is the least of a core
or a GPU. No float takes part in the arithmetic. Every parser raises InputError, whose hint shows what to write;
`format_*` is exact: parse(format(x)) == x.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from lavalite.base.errors import InputError
from lavalite.model.job import MAX_AMOUNT
from lavalite.model.resources import CPU, GPU, MEMORY, NETWORK, STORAGE, WHOLE

Typed = str | int | float
"""What a YAML or JSON reader hands over for an amount."""

NOTHING, NOTHING_HINT = "{} is nothing to ask for", "Leave it out, or ask for more than 0."
NEGATIVE, TOO_LARGE = "{} is negative", "{} is too large"

_BINARY = {f"{prefix}iB": 1024 ** (i + 1) for i, prefix in enumerate("KMGTPE")}
_DECIMAL = {f"{prefix}B": 1000 ** (i + 1) for i, prefix in enumerate("kMGTPE")}
BYTE_UNITS = {**_BINARY, **_DECIMAL, "B": 1}
BANDWIDTH_UNITS = {f"{prefix}bit/s": 1000**i for i, prefix in enumerate(["", "k", "M", "G", "T", "P"])}
DURATION_UNITS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}

_NUMBER = re.compile(r"([-+]?)([0-9]{1,40}(?:\.[0-9]{1,40})?)\s*(.*)", re.DOTALL)
_DURATION = re.compile("".join(rf"(?:([0-9]{{1,20}}){unit})?" for unit in DURATION_UNITS))


def parse_cpu(value: Typed) -> int:
    """Milli-cores of `16` or `0.5`."""
    return _parse_thousandths(value, "cores", "16, or 0.5 for half a core")


def parse_gpu(value: Typed) -> int:
    """Milli-GPUs of `4` or `0.5`."""
    return _parse_thousandths(value, "GPUs", "4, or 0.5 for half a GPU")


def parse_count(value: Typed) -> int:
    """A whole number, as of licences or IOPS."""
    number, unit = _split(value, "20")
    if unit or number.denominator != 1:
        raise _unreadable(value, "a whole number", f"Write {number.numerator // number.denominator}.")
    return _bounded(number, value)


def parse_bytes(value: Typed) -> int:
    """Bytes of `256GiB`, `3.5TiB` or `1.5GB`. A bare number other than 0 is refused: of what?"""
    return _parse_with_units(value, BYTE_UNITS, "a size", _meant_byte_unit, "256GiB")


def parse_bandwidth(value: Typed) -> int:
    """Bits a second of `25Gbit/s`."""
    return _parse_with_units(value, BANDWIDTH_UNITS, "a bandwidth", _meant_bandwidth_unit, "25Gbit/s")


def parse_duration(value: Typed) -> int:
    """Seconds of `15m`, `1h30m` or `2d`; units fall, each at most once."""
    text = _text(value, "15m, 1h30m or 90s")
    match = _DURATION.fullmatch(text)
    if text == "0":
        return 0
    if not text or not match:
        number = _NUMBER.fullmatch(text)
        hint = "Write it as 15m, 1h30m, 90s or 2d."
        if number and number[1] == "-":
            raise InputError(f"{text} is negative", code="negative_amount", hint=hint)
        unit = number[3].strip()[:1].lower() or "m" if number else ""
        if number and number[2].isdigit() and (number[3].strip() or unit).isalpha():
            hint = f"Write {number[2]}{unit if unit in DURATION_UNITS else 'm'}."
        raise InputError(f"{_shown(text)} is no duration", code="unknown_unit", hint=hint)
    seconds = sum(int(n) * unit for n, unit in zip(match.groups(), DURATION_UNITS.values(), strict=True) if n)
    return _bounded(Fraction(seconds), value)


def parse_share(value: Typed) -> int:
    """Per mille of `50%`, from 0% to 100%."""
    number, unit = _split(value, "50%")
    if unit != "%":
        raise _unreadable(value, "a share", f"Write {_decimal_text(number)}%.")
    if number > 100:
        raise InputError(f"{_shown(value)} is more than all", code="out_of_range", hint="Write at most 100%.")
    return _bounded(number * 10, value)


def asked(parse: Callable[[Any], int]) -> Callable[[Any], int]:
    """The parser, for an amount that is asked for: then it is more than nothing."""

    def read(value: Any) -> int:
        try:
            amount = parse(value)
        except InputError as error:
            fault = error.fault
            hint = fault.hint.replace("Write 0 or more", "Write more than 0")
            raise InputError(fault.message, code=fault.code, hint=hint) from None
        if not amount:
            raise InputError(NOTHING.format(_shown(value)), code="zero_amount", hint=NOTHING_HINT)
        return amount

    return read


_PARSERS = {CPU: parse_cpu, MEMORY: parse_bytes, GPU: parse_gpu, STORAGE: parse_bytes, NETWORK: parse_bandwidth}


def parse_amount(kind: str, value: Typed) -> int:
    """An amount of a kind in the kind's unit; a kind that is none of ours is floating and counted whole."""
    return _PARSERS.get(kind, parse_count)(value)


def format_thousandths(amount: int) -> str:
    """`16`, `0.5`: milli-cores or milli-GPUs as whole ones."""
    return _decimal_text(Fraction(amount, WHOLE))


format_cpu = format_gpu = format_thousandths


def format_bytes(amount: int) -> str:
    """The shortest exact spelling: `256GiB`, `1.5GB`, `1023B`."""
    return _shortest(amount, BYTE_UNITS)


def format_bandwidth(amount: int) -> str:
    """The shortest exact spelling: `25Gbit/s`."""
    return _shortest(amount, BANDWIDTH_UNITS)


def format_duration(seconds: int) -> str:
    """`1h30m`, `2d`; 0 is `0s`. Weeks are written as days."""
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, seconds = divmod(seconds, DURATION_UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


_FORMATTERS = {
    CPU: format_thousandths,
    MEMORY: format_bytes,
    GPU: format_thousandths,
    STORAGE: format_bytes,
    NETWORK: format_bandwidth,
}


def format_amount(kind: str, amount: int, *, named: bool = False) -> str:
    """An amount in its kind's spelling; `named` adds the kind: `16 cpu`, `128GiB memory`."""
    text = _FORMATTERS.get(kind, str)(amount)
    return f"{text} {kind}" if named else text


def approximate_bytes(amount: int) -> str:
    """At most four digits, rounded down, for tables of what machines report: `251.5GiB`. Not exact."""
    for unit in reversed(_BINARY):
        tenths = amount * 10 // _BINARY[unit]
        if tenths >= 10:
            return f"{_decimal_text(Fraction(tenths, 10) if tenths < 10_000 else Fraction(tenths // 10))}{unit}"
    return f"{amount}B"


def _parse_thousandths(value: Typed, noun: str, example: str) -> int:
    number, unit = _split(value, example)
    if unit:
        meant = _decimal_text(number / WHOLE if unit == "m" else number)
        raise InputError(
            f"{_shown(value)} has a unit, and {noun} are counted without one",
            code="unknown_unit",
            hint=f"Write {meant}.",
        )
    thousandths = number * WHOLE
    if thousandths.denominator != 1:
        raise InputError(
            f"{_shown(value)} is finer than a thousandth", code="out_of_range", hint=f"Write it as {example}."
        )
    return _bounded(thousandths, value)


def _parse_with_units(
    value: Typed, units: dict[str, int], noun: str, meant: Callable[[str], str], example: str
) -> int:
    number, unit = _split(value, example)
    if number == 0 and not unit:
        return 0
    if unit not in units or " " in _text(value, example).strip():
        guess = meant(unit)
        hint = f"Write {_decimal_text(number)}{guess}." if guess else f"Write it as {example}."
        what = "has no unit" if not unit else "has a space in it" if unit in units else f"has no unit of {noun}"
        raise InputError(f"{_shown(value)} {what}", code="unknown_unit", hint=hint)
    exact = number * units[unit]
    if 0 < exact < 1:
        raise InputError(f"{_shown(value)} is less than 1", code="out_of_range", hint=f"Write it as {example}.")
    return _bounded(Fraction(exact.numerator // exact.denominator), value)


def _meant_byte_unit(unit: str) -> str:
    """`GiB` for `Gib`, `Gi`, `G` or `gib`; `GB` for `gb`; `GiB` where there is none."""
    low = unit.lower().strip()
    exact = {name.lower(): name for name in BYTE_UNITS}
    if low in exact:
        return exact[low]
    names = {name[0].lower(): name for name in _BINARY}
    return names.get(low[:1], "") if low else "GiB"


def _meant_bandwidth_unit(unit: str) -> str:
    """`Gbit/s` for `Gb/s`, `Gbps`, `Gbit`, `G`, and where there is none. Nothing for `GB/s`: bytes are not bits."""
    if re.fullmatch(r"[kKMGTP]?i?B(/s|ps)?", unit) and unit not in ("b", ""):
        return ""
    prefixes = {"k": "k", "m": "M", "g": "G", "t": "T", "p": "P", "b": "", "": "G"}
    prefix = prefixes.get(unit.strip()[:1].lower())
    return "" if prefix is None else f"{prefix}bit/s"


def _text(value: Typed, example: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _unreadable(value, "an amount", f"Write it as {example}.")
    return _spelled(value)


def _spelled(value: object) -> str:
    """As it was most likely typed: `0.00001`, where Python would say `1e-05`."""
    if isinstance(value, float) and math.isfinite(value):
        return format(Decimal(repr(value)), "f")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _split(value: Typed, example: str) -> tuple[Fraction, str]:
    """Number and unit. Refuses what is no number and what is negative."""
    text = _text(value, example)
    match = _NUMBER.fullmatch(text.strip())
    if not match:
        raise _unreadable(text, "an amount", f"Write it as {example}.")
    if match[1] == "-" and Fraction(match[2]) != 0:
        hint = f"Write 0 or more, as {example}."
        raise InputError(NEGATIVE.format(_shown(text)), code="negative_amount", hint=hint)
    return Fraction(match[2]), match[3].strip()


def _bounded(number: Fraction, value: Typed) -> int:
    if number > MAX_AMOUNT:
        raise InputError(TOO_LARGE.format(_shown(value)), code="out_of_range", hint="Write a smaller amount.")
    return number.numerator // number.denominator


def _unreadable(value: object, noun: str, hint: str) -> InputError:
    return InputError(f"{_shown(value)} is not {noun}", code="bad_amount", hint=hint)


def _shown(value: object) -> str:
    text = "nothing" if value is None or value == "" else _spelled(value)
    return text if len(text) <= 40 else text[:37] + "…"


def _decimal_text(number: Fraction) -> str:
    """An exact decimal without trailing zeros; `number` has a denominator of twos and fives."""
    whole, rest = divmod(number.numerator, number.denominator)
    digits = ""
    while rest and len(digits) < 80:
        digit, rest = divmod(rest * 10, number.denominator)
        digits += str(digit)
    return f"{whole}.{digits}" if digits else str(whole)


def _shortest(amount: int, units: dict[str, int]) -> str:
    """The shortest exact spelling with at most three decimals; the earlier unit on equal lengths."""
    if amount == 0:
        return "0"
    spellings = [
        f"{_decimal_text(Fraction(amount, size))}{unit}"
        for unit, size in units.items()
        if amount >= size and amount * 1000 % size == 0
    ]
    return min(spellings, key=len)
