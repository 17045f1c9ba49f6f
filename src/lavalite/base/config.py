"""Configuration files: one YAML file, one pydantic model, and every fault at once with its file and line."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError
from pydantic_core import ErrorDetails

from lavalite.base.errors import Fault, InputError
from lavalite.base.logging import is_secret
from lavalite.base.yamlfile import dotted, line_of, parse_yaml

MAX_FILE_BYTES = 64 * 1024 * 1024
_SHOWN_CHARACTERS = 60

Steps = tuple[str | int, ...]


class Config(BaseModel):
    """Base of all configuration models: unknown fields are refused, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ModelT = TypeVar("ModelT", bound=BaseModel)


def load_config(path: str | Path, model: type[ModelT]) -> ModelT:
    """Read `path` as YAML into `model`. Raises InputError with all Faults, or one if the file cannot be read."""
    return parse_config(read_text(path), str(path), model)


def read_text(path: str | Path) -> str:
    """The file's text. Raises InputError."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise InputError(faults=[_unreadable(path, f"it is longer than {MAX_FILE_BYTES} bytes")])
        return raw.decode()
    except FileNotFoundError:
        raise InputError(faults=[_unreadable(path, "there is no such file")]) from None
    except OSError as error:
        raise InputError(faults=[_unreadable(path, error.strerror or str(error))]) from None
    except UnicodeDecodeError:
        raise InputError(faults=[_unreadable(path, "it is not UTF-8 text")]) from None


def parse_config(text: str, file: str, model: type[ModelT]) -> ModelT:
    """Read YAML `text` into `model`; `file` is its name in messages. Raises InputError with all Faults.

    Types are taken as written: `port: "80"` is a text and no number. Unknown fields are refused at every depth,
    whatever the model says.
    """
    value, lines = parse_yaml(text, file)
    try:
        # By way of JSON, because strict JSON still knows that a list may be a tuple and a text an enum.
        return model.model_validate_json(json.dumps({} if value is None else value), strict=True, extra="forbid")
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise InputError(faults=_distinct([_fault(e, file, lines, model) for e in errors])) from None
    except InputError as error:  # a validator's own sentence
        raise InputError(faults=[_placed(fault, file, lines) for fault in error.faults]) from None


def _unreadable(path: str | Path, why: str) -> Fault:
    hint = "Name another file, or mend this one's permissions or content."
    return Fault("cannot_read", f"cannot read {path}: {why}", hint=hint)


def _fault(error: ErrorDetails, file: str, lines: dict[Steps, int], model: type[BaseModel]) -> Fault:
    kind, path = error["type"], _steps_in_file(error["loc"], lines)
    message, hint = error["msg"].replace(" after validation", ""), ""
    if kind == "missing":
        path = (*path, error["loc"][-1])
        message, hint = "it is missing", "Add it."
    elif kind == "extra_forbidden":
        message, hint = "there is no such field", _did_you_mean(path, model)
    elif kind == "value_error":
        message = message.removeprefix("Value error, ")
    else:
        message = message.replace("Input should", "it should", 1) + _shown(path, error["input"])
    return Fault(kind, message, dotted(path), hint, file, line_of(lines, path))


def _steps_in_file(loc: Steps, lines: dict[Steps, int]) -> Steps:
    """The location as it stands in the file: without the names of union members that pydantic puts between."""
    path: Steps = ()
    for step in loc:
        if (*path, step) in lines:
            path = (*path, step)
    return path


def _shown(path: Steps, value: Any) -> str:
    """`, not 'x'`, unless it is secret, long or no plain value."""
    if not isinstance(value, str | int | float | None) or any(is_secret(str(step)) for step in path):
        return ""
    text = "empty" if value is None else json.dumps(value, ensure_ascii=False)
    return f", not {text}" if len(text) <= _SHOWN_CHARACTERS else ""


def _did_you_mean(path: Steps, model: type[BaseModel]) -> str:
    known: list[str] = sorted({name for m in _models_at(path[:-1], model) for name in _field_names(m)})
    close = difflib.get_close_matches(str(path[-1]) if path else "", known, n=1)
    if close:
        return f"Did you mean {close[0]}?"
    return f"Known here: {', '.join(known)}." if 0 < len(known) <= 30 else "Remove it."


def _field_names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _models_at(path: Steps, model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that may stand at `path`: list positions and keys of mappings lead to what they hold."""
    here = _models_in(model)
    for step in path:
        inner: list[type[BaseModel]] = []
        for m in here:
            for name, field in m.model_fields.items():
                if (field.alias or name) == step:
                    inner += _models_in(field.annotation)
        here = inner or here  # a list position, or a key of a mapping
    return here


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, RootModel):
        return _models_in(annotation.model_fields["root"].annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _placed(fault: Fault, file: str, lines: dict[Steps, int]) -> Fault:
    line = line_of(lines, tuple(fault.field.split("."))) if fault.field else 0
    return Fault(fault.code, fault.message, fault.field, fault.hint, file, line)


def _distinct(faults: list[Fault]) -> list[Fault]:
    """In the order of the file; a union reports the same fault once a member."""
    return sorted(dict.fromkeys(faults), key=lambda fault: fault.line)
