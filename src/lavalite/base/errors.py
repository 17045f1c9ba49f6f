"""Every error that a person may see: a stable code, one sentence, and the way out.

LavaLiteError                 exit 1
├── InputError                exit 2   what was typed or written is wrong (holds one or many Faults)
│   └── UnknownNameError      exit 2   a name that does not exist
├── ConflictError             exit 1   a version or a state stands against it
├── RefusedError              exit 1   the peer says no: token, role, epoch
├── BusyError                 exit 1   there is too much already; worth another try in a while
├── UnreachableError          exit 3   a daemon or a store does not answer
└── FencedError               exit 1   we are no longer the leader; the process must end
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(slots=True, frozen=True)
class Fault:
    """One thing wrong with an input. `file` and `line` (from 1) are absent for input that came over the API."""

    code: str
    message: str
    field: str = ""
    hint: str = ""
    file: str = ""
    line: int = 0

    def sentence(self) -> str:
        """`file:line: field: what is wrong. What to do.` with whatever of it is known."""
        where = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        name = f"{self.field}: " if self.field else ""
        text = self.message if self.message.endswith((".", "?", "!")) else self.message + "."
        return f"{where}{name}{text}{' ' + self.hint if self.hint else ''}"


class LavaLiteError(Exception):
    """The root of our own errors. `str()` of one is fit for a person's terminal."""

    exit_code = 1
    default_code = "failed"

    def __init__(self, message: str, *, code: str = "", field: str = "", hint: str = "") -> None:
        self.fault = Fault(code or self.default_code, message, field, hint)
        super().__init__(self.fault.sentence())

    @property
    def code(self) -> str:
        return self.fault.code


class InputError(LavaLiteError):
    """Bad input. Holds all faults found, so that a person mends them in one go."""

    exit_code = 2
    default_code = "bad_input"

    def __init__(
        self,
        message: str = "",
        *,
        code: str = "",
        field: str = "",
        hint: str = "",
        faults: list[Fault] | None = None,
    ) -> None:
        self.faults = faults or [Fault(code or self.default_code, message, field, hint)]
        first = self.faults[0]
        super().__init__(first.message, code=first.code, field=first.field, hint=first.hint)
        self.args = ("\n".join(f.sentence() for f in self.faults),)

    def at(self, field: str) -> InputError:
        """The same, said of this field: for who reads a part that does not know where it stands."""
        return InputError(faults=[replace(fault, field=field) for fault in self.faults])


class UnknownNameError(InputError):
    default_code = "unknown_name"


class ConflictError(LavaLiteError):
    default_code = "conflict"


class RefusedError(LavaLiteError):
    default_code = "refused"


class BusyError(LavaLiteError):
    """Nothing was done. It is worth another try after `retry_after_seconds`."""

    default_code = "too_many"

    def __init__(
        self, message: str, *, code: str = "", field: str = "", hint: str = "", retry_after_seconds: int = 1
    ) -> None:
        super().__init__(message, code=code, field=field, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class UnreachableError(LavaLiteError):
    exit_code = 3
    default_code = "unreachable"


class FencedError(LavaLiteError):
    default_code = "fenced"
