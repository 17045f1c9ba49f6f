# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Amounts as people write them, and the integers that `/v1` keeps: milli-cores, bytes, milli-GPUs, bits a second.

The spellings are those of pools.yml: `0.5`, `256GiB`, `25Gbit/s`, `1h30m`. No float takes part; what is below a byte
or a bit a second is dropped. What cannot be read is a ValueError that says what to write.
"""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import re
from fractions import Fraction

_NUMBER = re.compile(r"([0-9]{1,40}(?:\.[0-9]{1,40})?)([A-Za-z/]*)")
_BYTES = dict(
    [(prefix + "iB", 1024**power) for power, prefix in enumerate("KMGTPE", 1)]
    + [(prefix + "B", 1000**power) for power, prefix in enumerate("kMGTPE", 1)]
    + [("B", 1)]
)
_BITS = dict((prefix + "bit/s", 1000**power) for power, prefix in enumerate(["", "k", "M", "G", "T", "P"]))
_SECONDS = (("w", 604800), ("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_DURATION = re.compile("".join("(?:([0-9]{1,20})%s)?" % unit for unit, _size in _SECONDS))


MAX_AMOUNT = 2**63 - 1


def asked(parse, text, field):
    """What `parse` reads, if it can be asked for: more than nothing, and no more than there can be."""
    amount = parse(text, field)
    if not amount:
        raise ValueError("%s: %s is nothing to ask for. Leave it out, or ask for more than 0." % (field, text))
    if amount > MAX_AMOUNT:
        raise ValueError("%s: %s is too large. Write a smaller amount." % (field, str(text)[:40]))
    return amount


def count(text, field):
    """`20` → 20."""
    number, unit = _split(text, field, "Write a whole number such as 20")
    if unit or number.denominator != 1:
        raise _unreadable(text, field, "Write a whole number such as 20")
    return int(number)


def milli(text, field):
    """`0.5` → 500."""
    hint = "Write a number such as 4 or 0.5"
    number, unit = _split(text, field, hint)
    thousandths = number * 1000
    if unit or thousandths.denominator != 1:
        raise _unreadable(text, field, hint)
    return int(thousandths)


def byte_count(text, field):
    """`256GiB` → 274877906944. A bare number other than 0 is refused: of what?"""
    return _with_unit(text, _BYTES, field, "Write a size such as 512MiB or 2GB")


def bits_per_second(text, field):
    """`25Gbit/s` → 25000000000."""
    return _with_unit(text, _BITS, field, "Write a bandwidth such as 10Gbit/s")


def seconds(text, field):
    """`15m` → 900, `1h30m` → 5400."""
    plain = str(text).strip()
    if plain == "0":
        return 0
    match = _DURATION.fullmatch(plain)
    if not plain or not match:
        raise _unreadable(text, field, "Write a duration such as 90s, 15m or 1h30m")
    return sum(int(count) * size for count, (_unit, size) in zip(match.groups(), _SECONDS) if count)


def shown(kind, amount):
    """The shortest exact spelling of an amount of a kind: `0.5`, `128MiB`, `25Gbit/s`."""
    if kind in ("cpu", "gpu"):
        return _decimal(Fraction(amount, 1000))
    units = dict(memory=_BYTES, storage=_BYTES, network=_BITS).get(kind)
    if not (units and amount):
        return str(amount)
    exact = [(unit, Fraction(amount, size)) for unit, size in units.items() if amount >= size]
    spellings = [_decimal(number) + unit for unit, number in exact if (number * 1000).denominator == 1]
    return min(spellings, key=len)


def _decimal(number):
    """Of whole thousandths, without trailing zeros."""
    whole, rest = divmod(int(number * 1000), 1000)
    return ("%d.%03d" % (whole, rest)).rstrip("0").rstrip(".") if rest else str(whole)


def _with_unit(text, units, field, hint):
    number, unit = _split(text, field, hint)
    if number == 0 and not unit:
        return 0
    if unit not in units:
        raise _unreadable(text, field, hint)
    exact = number * units[unit]
    if 0 < exact < 1:
        raise _unreadable(text, field, hint)
    return exact.numerator // exact.denominator


def _split(text, field, hint):
    plain = str(text).strip()
    match = _NUMBER.fullmatch(plain)
    if not match and plain.startswith("-") and _NUMBER.fullmatch(plain[1:]):
        raise ValueError("%s: %s is negative. %s." % (field, plain[:40], hint))
    if not match:
        raise _unreadable(text, field, hint)
    return Fraction(match.group(1)), match.group(2)


def _unreadable(text, field, hint):
    return ValueError("%s: %s is not understood. %s." % (field, str(text)[:40], hint))
