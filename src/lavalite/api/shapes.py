"""What all answers and all requests of /v1 have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """Answers may grow fields: a client ignores what it does not know."""

    model_config = ConfigDict(extra="ignore")


class Ask(BaseModel):
    """Requests may not: an unknown field is a mistake and is said to be one."""

    model_config = ConfigDict(extra="forbid")
