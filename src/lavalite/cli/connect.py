"""What commands have in common: --api and --state, and what they mean (lavalite.providers.place)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from lavalite.providers.place import Place as Place
from lavalite.providers.place import find_place as find_place

Api = Annotated[str, typer.Option("--api", metavar="URL", help="Where the API is (LAVALITE_API).")]
State = Annotated[str, typer.Option("--state", metavar="DIR", help="The folder of `lavalite up` (LAVALITE_STATE).")]


def at_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --api and --state, and its parameter `place` what they say."""

    @functools.wraps(function)
    def command(*args: Any, api: str = "", state: str = "", **kwargs: Any) -> Any:
        return function(*args, place=find_place(api, state), **kwargs)

    signature = inspect.signature(function, eval_str=True)
    kept = [p for name, p in signature.parameters.items() if name != "place"]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="", annotation=annotation)
        for name, annotation in (("api", Api), ("state", State))
    ]
    kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept]
    command.__signature__ = signature.replace(parameters=[*kept, *more])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*kept, *more]}
    del command.__wrapped__
    return command
