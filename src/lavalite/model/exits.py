"""Exit codes as people write them: `75`, `SIGKILL` or `KILL`; and as we keep them: a signal is negative."""

from __future__ import annotations

import re
from signal import Signals

from lavalite.base.errors import InputError

_HINT = "Write a code from 1 to 255, or a signal, as 75 or SIGKILL."
_CODE = re.compile(r"-?[0-9]{1,3}")


def parse_exit(value: object) -> int:
    """Raises InputError. 0 is refused too: a task that ends with 0 has succeeded."""
    text = str(value).strip()
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f"{text[:40]} is no exit code", code="bad_exit_code", hint=_HINT)
    if _CODE.fullmatch(text) and text.isascii():
        code = int(text)
        if 1 <= code <= 255 or -64 <= code <= -1:
            return code
        raise InputError(f"{text} is no exit code of a failure", code="bad_exit_code", hint=_HINT)
    name = text.upper().removeprefix("SIG")
    found = Signals.__members__.get(f"SIG{name}") if name.isalnum() else None
    if found is None:
        raise InputError(f"{text[:40] or 'nothing'} is no exit code", code="bad_exit_code", hint=_HINT)
    return -int(found)


def format_exit(code: int) -> str:
    """`75`, `SIGKILL`; parse_exit reads it back."""
    if code >= 0:
        return str(code)
    return Signals(-code).name if -code in Signals._value2member_map_ else str(code)
