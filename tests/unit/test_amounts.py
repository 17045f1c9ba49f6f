"""Amounts: what is read, what is refused and with which words, and that formatting is exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavalite.base.errors import InputError
from lavalite.model import amounts
from lavalite.model.job import MAX_AMOUNT
from lavalite.model.resources import KINDS

GIB = 2**30


@pytest.mark.parametrize(
    ("parse", "typed", "amount"),
    [
        (amounts.parse_cpu, 16, 16_000),
        (amounts.parse_cpu, "16", 16_000),
        (amounts.parse_cpu, 0.5, 500),
        (amounts.parse_cpu, "0.001", 1),
        (amounts.parse_cpu, 0.1, 100),
        (amounts.parse_gpu, 0.3, 300),
        (amounts.parse_bytes, "256GiB", 256 * GIB),
        (amounts.parse_bytes, "3.5TiB", 3584 * GIB),
        (amounts.parse_bytes, "1.5GB", 1_500_000_000),
        (amounts.parse_bytes, "1B", 1),
        (amounts.parse_bytes, "1.1KiB", 1126),  # 1126.4: what is below a byte is dropped
        (amounts.parse_bytes, 0, 0),
        (amounts.parse_bandwidth, "25Gbit/s", 25_000_000_000),
        (amounts.parse_bandwidth, "2.5Gbit/s", 2_500_000_000),
        (amounts.parse_bandwidth, "9600bit/s", 9600),
        (amounts.parse_duration, "15m", 900),
        (amounts.parse_duration, "1h30m", 5400),
        (amounts.parse_duration, "90s", 90),
        (amounts.parse_duration, "1w2d", 777_600),
        (amounts.parse_share, "50%", 500),
        (amounts.parse_share, "12.5%", 125),
        (amounts.parse_count, 20, 20),
    ],
)
def test_what_people_write(parse: Callable[[object], int], typed: object, amount: int) -> None:
    assert parse(typed) == amount


@pytest.mark.parametrize(
    ("parse", "typed", "sentence"),
    [
        (amounts.parse_bytes, "256Gib", "256Gib has no unit of a size. Write 256GiB."),
        (amounts.parse_bytes, "256G", "256G has no unit of a size. Write 256GiB."),
        (amounts.parse_bytes, "256Gi", "256Gi has no unit of a size. Write 256GiB."),
        (amounts.parse_bytes, "256gb", "256gb has no unit of a size. Write 256GB."),
        (amounts.parse_bytes, "256 GB", "256 GB has a space in it. Write 256GB."),
        (amounts.parse_bytes, 256, "256 has no unit. Write 256GiB."),
        (amounts.parse_bytes, "256 apples", "256 apples has no unit of a size. Write it as 256GiB."),
        (amounts.parse_bytes, "-1GiB", "-1GiB is negative. Write 0 or more, as 256GiB."),
        (amounts.parse_bytes, "0.5B", "0.5B is less than 1. Write it as 256GiB."),
        (amounts.parse_bytes, "9EiB", "9EiB is too large. Write a smaller amount."),
        (amounts.parse_bytes, "lots", "lots is not an amount. Write it as 256GiB."),
        (amounts.parse_bytes, True, "true is not an amount. Write it as 256GiB."),
        (amounts.parse_bytes, "", "nothing is not an amount. Write it as 256GiB."),
        (amounts.parse_bandwidth, "25Gb/s", "25Gb/s has no unit of a bandwidth. Write 25Gbit/s."),
        (amounts.parse_bandwidth, "25Gbps", "25Gbps has no unit of a bandwidth. Write 25Gbit/s."),
        (amounts.parse_bandwidth, "25", "25 has no unit. Write 25Gbit/s."),
        (amounts.parse_bandwidth, "25GB/s", "25GB/s has no unit of a bandwidth. Write it as 25Gbit/s."),
        (amounts.parse_cpu, "500m", "500m has a unit, and cores are counted without one. Write 0.5."),
        (amounts.parse_cpu, "16 cores", "16 cores has a unit, and cores are counted without one. Write 16."),
        (
            amounts.parse_cpu,
            0.0005,
            "0.0005 is finer than a thousandth. Write it as 16, or 0.5 for half a core.",
        ),
        (
            amounts.parse_cpu,
            0.00001,
            "0.00001 is finer than a thousandth. Write it as 16, or 0.5 for half a core.",
        ),
        (amounts.parse_cpu, -1, "-1 is negative. Write 0 or more, as 16, or 0.5 for half a core."),
        (amounts.parse_cpu, None, "nothing is not an amount. Write it as 16, or 0.5 for half a core."),
        (amounts.parse_duration, 15, "15 is no duration. Write 15m."),
        (amounts.parse_duration, "15 min", "15 min is no duration. Write 15m."),
        (amounts.parse_duration, "-5m", "-5m is negative. Write it as 15m, 1h30m, 90s or 2d."),
        (amounts.parse_duration, "30m1h", "30m1h is no duration. Write it as 15m, 1h30m, 90s or 2d."),
        (amounts.parse_duration, "soon", "soon is no duration. Write it as 15m, 1h30m, 90s or 2d."),
        (amounts.parse_share, "0.5", "0.5 is not a share. Write 0.5%."),
        (amounts.parse_share, "150%", "150% is more than all. Write at most 100%."),
        (amounts.parse_count, "2.5", "2.5 is not a whole number. Write 2."),
    ],
)
def test_what_is_refused_names_the_way_out(parse: Callable[[object], int], typed: object, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(typed)
    assert str(caught.value) == sentence


@given(st.sampled_from(KINDS), st.integers(0, MAX_AMOUNT))
def test_format_is_exact(kind: str, amount: int) -> None:
    """Law: parse(format(x)) == x, of every kind."""
    assert amounts.parse_amount(kind, amounts.format_amount(kind, amount)) == amount


@given(st.integers(0, 2**16), st.sampled_from(list(amounts.BYTE_UNITS)))
def test_round_amounts_stay_short(count: int, unit: str) -> None:
    amount = count * amounts.BYTE_UNITS[unit]
    if amount <= MAX_AMOUNT:
        assert amounts.parse_bytes(amounts.format_bytes(amount)) == amount
        assert len(amounts.format_bytes(amount)) <= len(f"{count}{unit}")


@given(st.integers(0, MAX_AMOUNT))
def test_durations_and_shares_too(amount: int) -> None:
    assert amounts.parse_duration(amounts.format_duration(amount)) == amount
    per_mille = amount % 1001
    assert amounts.parse_share(f"{per_mille // 10}.{per_mille % 10}%") == per_mille


@given(st.text(max_size=12) | st.floats(allow_nan=True) | st.none() | st.booleans())
def test_nothing_but_input_errors_ever(typed: object) -> None:
    """Law: whatever is typed, it is an amount or an InputError with one sentence."""
    for parse in (amounts.parse_cpu, amounts.parse_bytes, amounts.parse_bandwidth, amounts.parse_duration):
        try:
            assert 0 <= parse(typed) <= MAX_AMOUNT  # type: ignore[arg-type]
        except InputError as error:
            assert error.fault.hint


def test_what_tables_show() -> None:
    assert amounts.approximate_bytes(256 * GIB) == "256GiB"
    assert amounts.approximate_bytes(270_000_000_000) == "251.4GiB"
    assert amounts.approximate_bytes(1023) == "1023B"
    assert amounts.format_amount("gpu", 2000, named=True) == "2 gpu"
    assert amounts.format_bytes(384 * GIB // 2) == "192GiB"
    assert amounts.format_bytes(1_500_000_000) == "1.5GB"
