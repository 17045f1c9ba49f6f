"""How pools.yml is spelled: strict entries, and amounts and names as people write them."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from lavalite.base.errors import InputError
from lavalite.model import amounts
from lavalite.model.exits import parse_exit
from lavalite.model.resources import KINDS, special_fault
from lavalite.model.selector import Selector


class Entry(BaseModel):
    """Strict: a boolean is no number, a number no text, and an unknown key is a fault."""

    model_config = ConfigDict(strict=True, extra="forbid", populate_by_name=False, arbitrary_types_allowed=True)


def reads(parse: Callable[[Any], Any]) -> BeforeValidator:
    """Let `parse` read a value; its InputError becomes pydantic's, with code and hint kept."""

    def read(value: Any) -> Any:
        try:
            return parse(value)
        except InputError as error:
            raise custom(error.code, error.fault.message, error.fault.hint) from error

    return BeforeValidator(read)


def custom(code: str, message: str, hint: str = "") -> PydanticCustomError:
    """A fault of ours inside a pydantic validator."""
    return PydanticCustomError("lavalite", "{message}", {"code": code, "message": message, "hint": hint})


Cpu = Annotated[int, reads(amounts.parse_cpu)]
Gpu = Annotated[int, reads(amounts.parse_gpu)]
Bytes = Annotated[int, reads(amounts.parse_bytes)]
Bandwidth = Annotated[int, reads(amounts.parse_bandwidth)]
Seconds = Annotated[int, reads(amounts.parse_duration)]
Count = Annotated[int, reads(amounts.parse_count)]
AskedGpu = Annotated[int, reads(amounts.asked(amounts.parse_gpu))]
AskedBytes = Annotated[int, reads(amounts.asked(amounts.parse_bytes))]
AskedBandwidth = Annotated[int, reads(amounts.asked(amounts.parse_bandwidth))]
"""What a logical host asks for. Of its CPU, which it must have, pools_check says more."""
Nodes = Annotated[Selector, reads(Selector.parse)]
ExitCode = Annotated[int, reads(parse_exit)]


def _kind(value: Any) -> str:
    """One of the five, or the name of a special kind; what is nearly one of the five is that misspelled."""
    close = _close(value) if isinstance(value, str) else list(KINDS)
    if value not in KINDS and close:
        hint = f"Did you mean {close[0]}?" if len(close) == 1 else f"Write {' or '.join(close)}."
        raise custom("unknown_value", f"{str(value)[:60]} is not known here", hint)
    return str(value) if value in KINDS else _special(value)


def _close(value: str) -> list[str]:
    """`memry`, and `cup`; but `npu` and `tpu` are kinds of their own."""
    return get_close_matches(value, KINDS, n=1, cutoff=0.75) or [k for k in KINDS if sorted(k) == sorted(value)]


def _special(value: Any) -> str:
    if not isinstance(value, str) or (fault := special_fault(value)):
        fault = fault if isinstance(value, str) else f"{str(value)[:60]} is no name of a kind"
        raise custom("bad_name", fault, "Write fpga, or whatever nodes call it in lim_special.")
    return value


Kind = Annotated[str, BeforeValidator(_kind)]
Special = Annotated[str, BeforeValidator(_special)]


def spelled_short(field: str) -> Any:
    """A validator that reads `gpu: 4` as `gpu: {count: 4}`."""

    def spread(value: Any) -> Any:
        return value if isinstance(value, dict) else {field: value}

    return model_validator(mode="before")(spread)
