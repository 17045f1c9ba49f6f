"""What one task needs, per kind: the request that a job makes, or each part of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from lavalite.model.resources import SpecialName, Stored

MAX_AMOUNT = 2**63 - 1
Amount = Annotated[int, Field(ge=0, le=MAX_AMOUNT)]


TYPED = {"typed": True}
"""The context in which a request is read as somebody typed it: what is asked for is then more than nothing."""

_ASKED = (
    *("cpu_milli", "memory_bytes", "gpu_milli", "gpu_memory_bytes", "storage_bytes", "network_bits_per_second"),
    *("special", "floating"),
)


class Request(Stored):
    """What one task needs, per kind in the kind's unit (model.resources). All equal requests form a class."""

    cpu_milli: Amount = 1000
    memory_bytes: Amount = 0
    gpu_milli: Amount = 0
    gpu_model: str = ""
    gpu_memory_bytes: Amount = 0
    gpu_mig: str = Field(default="", max_length=32, pattern=r"^$|^([1-9]c\.)?[1-9][0-9]?g\.[0-9]{1,4}gb(\+[a-z.]+)?$")
    """The profile of MIG instances, as `1g.10gb`: then so many of those are asked for, and no whole GPUs."""
    gpu_topology: Literal["", "nvlink", "pcie", "numa"] = ""
    """What all GPUs of a task must have in common; where it is not said, they are as near as can be."""
    storage_bytes: Amount = 0
    network_bits_per_second: Amount = 0
    special: dict[SpecialName, Amount] = {}
    """Whole devices of kinds that an operator named; such are of nodes, as GPUs are."""
    floating: dict[str, Amount] = {}
    pools: dict[str, str] = {}
    exclusive: bool = False
    """Each task has a node for itself: nobody else holds anything of that node while it does."""

    @field_validator(*_ASKED, mode="after")
    @classmethod
    def _more_than_nothing(cls, value: Any, info: ValidationInfo) -> Any:
        for amount in value.values() if isinstance(value, dict) else [value]:
            if amount == 0 and info.context == TYPED:
                message = "0 is nothing to ask for"
                raise PydanticCustomError("zero_amount", "{message}", {"message": message})
        return value

    @model_validator(mode="after")
    def _of_nodes_or_of_none(self) -> Request:
        if both := sorted(self.special.keys() & self.floating.keys()):
            raise ValueError(f"{both[0]} is asked for as special and as floating, and can be one of them")
        return self

    def amounts(self) -> dict[str, int]:
        """Amount per kind that nodes have, zeros left out."""
        asked = {
            "cpu": self.cpu_milli,
            "memory": self.memory_bytes,
            "gpu": self.gpu_milli,
            "storage": self.storage_bytes,
            "network": self.network_bits_per_second,
            **self.special,
        }
        return {kind: amount for kind, amount in asked.items() if amount}
