"""`--part` of `lavalite submit`, as it is typed, and parts as they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lavalite.base.errors import Fault, InputError
from lavalite.cli.request import make_request
from lavalite.model.amounts import asked, parse_count

OPTION = "--part"
_PLAIN = ("cpu", "memory", "gpu", "gpu-memory", "storage", "network")
_TEXTS = {"gpu-model": "gpu_model", "mig": "gpu_mig", "gpu-topology": "gpu_topology"}
_PAIRS = ("special", "floating", "pool")
_HINT = (
    "Write name=worker,tasks=4,cpu=8,memory=16GiB,gpu=1; more it may have are"
    " gpu-model, gpu-memory, mig, gpu-topology, storage, network, special=KIND:N, floating=NAME:N and pool=KIND:POOL."
)


def parse_part(text: str) -> dict[str, Any]:
    """`name=worker,tasks=4,cpu=8,gpu=1,pool=gpu:a100`; spaces will do for commas. Raises InputError."""
    typed: dict[str, str] = {}
    pairs: dict[str, list[str]] = {name: [] for name in _PAIRS}
    for word in text.replace(",", " ").split():
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise InputError(f"{word} is nothing that a part has", field=OPTION, hint=_HINT)
        if key in typed:
            raise InputError(f"{key} is said twice of one part", field=OPTION, hint="Leave one of them out.")
        if key in pairs:
            pairs[key].append(_pair(key, value))
        elif key in ("name", "tasks", *_PLAIN, *_TEXTS):
            typed[key] = value
        else:
            raise InputError(f"{key} is nothing that a part has", field=OPTION, hint=_HINT)
    if "name" not in typed:
        raise InputError(f"{text.strip() or 'nothing'} is a part without a name", field=OPTION, hint=_HINT)
    try:
        tasks = asked(parse_count)(typed.get("tasks", "1"))
        amounts = {name.replace("-", "_"): typed[name] for name in _PLAIN if name in typed}
        request = make_request(amounts, "", pairs["floating"], pairs["pool"], pairs["special"])
    except InputError as error:
        raise InputError(faults=[_of_part(typed["name"], fault) for fault in error.faults]) from None
    request |= {field: typed[name] for name, field in _TEXTS.items() if name in typed}
    return {"name": typed["name"], "tasks": tasks, "request": request}


def demand_no_request(parts: list[str] | None, typed: Mapping[str, object]) -> None:
    """With parts, each says what its tasks need and how many they are. Raises InputError that names both."""
    twice = [f"--{name.replace('_', '-')}" for name, value in typed.items() if value]
    if parts and twice:
        message = f"{OPTION} and {twice[0]} exclude each other"
        raise InputError(message, field=OPTION, hint=f"Say it in each part: {OPTION} name=ps,tasks=1,cpu=4.")


def _pair(key: str, value: str) -> str:
    name, colon, rest = value.partition(":")
    if not colon or not name or not rest:
        example = {"special": "special=fpga:1", "floating": "floating=matlab:1"}.get(key, "pool=gpu:a100")
        raise InputError(f"{key}={value} has no colon in it", field=OPTION, hint=f"Write it as {example}.")
    return f"{name}={rest}"


def _of_part(name: str, fault: Fault) -> Fault:
    option = fault.field.removeprefix("--") or "tasks"
    return Fault(fault.code, fault.message, f"{OPTION} {name}: {option}", fault.hint)
