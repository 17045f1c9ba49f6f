"""What one task needs, as it is typed after `lavalite submit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lavalite.base.errors import Fault, InputError
from lavalite.model import amounts
from lavalite.model.amounts import parse_bandwidth, parse_bytes, parse_count, parse_cpu, parse_gpu

_AMOUNTS: dict[str, tuple[str, Any]] = {
    "cpu": ("cpu_milli", parse_cpu),
    "memory": ("memory_bytes", parse_bytes),
    "gpu": ("gpu_milli", parse_gpu),
    "gpu_memory": ("gpu_memory_bytes", parse_bytes),
    "storage": ("storage_bytes", parse_bytes),
    "network": ("network_bits_per_second", parse_bandwidth),
}


def parse_pairs(texts: list[str], option: str, example: str) -> dict[str, str]:
    """`NAME=VALUE` each. Raises InputError."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"{text} is no NAME=VALUE", field=option, hint=f"Write it as {option} {example}.")
        pairs[name] = value
    return pairs


def make_request(
    typed: dict[str, str], gpu_model: str, floating: list[str], pools: list[str], special: Sequence[str] = ()
) -> dict[str, Any]:
    """The request of one task, from amounts as people write them. Raises InputError with every fault."""
    faults: list[Fault] = []
    request: dict[str, Any] = {"gpu_model": gpu_model, "pools": parse_pairs(pools, "--pool", "gpu=gpus")}
    asked = [(name, *_AMOUNTS[name], text) for name, text in typed.items() if text]
    counted = {
        "floating": parse_pairs(floating, "--floating", "matlab=1"),
        "special": parse_pairs(list(special), "--special", "fpga=1"),
    }
    request |= {place: {} for place in counted}
    for name, target, parse, text in asked:
        try:
            request[target] = amounts.asked(parse)(text)
        except InputError as error:
            faults += [at_option(fault, f"--{name.replace('_', '-')}") for fault in error.faults]
    for place, name, text in ((place, *pair) for place, pairs in counted.items() for pair in pairs.items()):
        try:
            request[place][name] = amounts.asked(parse_count)(text)
        except InputError as error:
            faults += [at_option(fault, f"--{place} {name}") for fault in error.faults]
    if faults:
        raise InputError(faults=faults)
    return request


def at_option(fault: Fault, option: str) -> Fault:
    return Fault(fault.code, fault.message, option, fault.hint)
