"""pydantic's complaints about pools.yml in our words: one Fault each, with line, field, code and the way out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from lavalite.base.errors import Fault
from lavalite.base.yamlfile import Path, dotted, line_of

MAX_SHOWN = 60


@dataclass(slots=True)
class FaultList:
    """Gathers faults about one document. `file` is empty and `lines` too for what came without a file."""

    file: str = ""
    lines: Mapping[Path, int] = field(default_factory=dict)
    found: list[Fault] = field(default_factory=list)

    def add(self, code: str, path: Path, message: str, hint: str) -> None:
        line = line_of(self.lines, path) if self.lines else 0
        self.found.append(Fault(code, message, dotted(path), hint, self.file, line))

    def add_validation(self, path: Path, error: ValidationError, model: type[BaseModel]) -> None:
        """All that pydantic found wrong with the value at `path`, which should have been a `model`."""
        for detail in error.errors(include_url=False):
            below = tuple(step for step in detail["loc"] if step != "[key]")
            code, message, hint = _words(detail, model)
            self.add(code, (*path, *below), message, hint)

    def in_order(self) -> list[Fault]:
        """By line, as found where they share one, and none twice."""
        return sorted(dict.fromkeys(self.found), key=lambda fault: fault.line)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean gpu?`, or the names that there are."""
    names = sorted(set(known))
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]}?"
    if not names:
        return "None is defined."
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"Known: {shown}."


def _words(detail: Any, model: type[BaseModel]) -> tuple[str, str, str]:
    """Code, message and hint."""
    kind, context = detail["type"], detail.get("ctx", {})
    value = shown(detail["input"])
    if kind == "lavalite":
        return context["code"], context["message"], context["hint"]
    if kind == "extra_forbidden":
        return "unknown_key", "unknown key", did_you_mean(str(detail["loc"][-1]), _keys_at(model, detail["loc"]))
    if kind == "missing":
        return "missing", "missing", f"Write {detail['loc'][-1]}: …"
    if kind == "literal_error":
        return _literal(detail["input"], value, context["expected"])
    if kind in ("greater_than_equal", "less_than_equal"):
        bound = context.get("ge", context.get("le"))
        if kind == "greater_than_equal":
            code = "negative_amount" if _negative(detail["input"]) else "out_of_range"
            return code, f"{value} is too low", f"Write {bound} or more."
        return "out_of_range", f"{value} is too high", f"Write {bound} or less."
    if kind == "string_pattern_mismatch":
        return (
            "bad_name",
            f"{value} is no name",
            "Write letters, digits, _, . and -, at most 63, a letter or digit first.",
        )
    return _wrong_type(kind, value)


_SHAPES = {
    "int": ("a whole number", "Write a number without a unit, as 2."),
    "bool": ("true or false", "Write true or false."),
    "string": ("text", "Write text; a number goes in quotes."),
    "list": ("a list", "Write it as [a, b]."),
    "dict": ("a mapping", "Write keys and values below it."),
    "model": ("a mapping", "Write keys and values below it."),
}


def _wrong_type(kind: str, value: str) -> tuple[str, str, str]:
    noun, hint = _SHAPES.get(kind.split("_")[0], ("what belongs here", "See the documentation of pools.yml."))
    return "wrong_type", f"{value} is not {noun}", hint


def _literal(given: object, value: str, expected: str) -> tuple[str, str, str]:
    known = [word for word in expected.replace("' or '", "', '").strip("'").split("', '") if word]
    close = get_close_matches(given, known, n=1, cutoff=0.6) if isinstance(given, str) else []
    hint = f"Did you mean {close[0]}?" if close else f"Write {' or '.join(known)}."
    return "unknown_value", f"{value} is not known here", hint


def _keys_at(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """The keys that the model (or the one of its parts that `location` leads into) knows."""
    for step in location[:-1]:
        for name, spec in model.model_fields.items():
            if step == (spec.alias or name):
                model = _model_in(spec.annotation) or model
    return [spec.alias or name for name, spec in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside `X`, `X | None` or `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _model_in(part)
        if found is not None:
            return found
    return None


def _negative(value: object) -> bool:
    return isinstance(value, int | float) and value < 0


def shown(value: object) -> str:
    """A value of the document in a sentence, short."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = str(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
