"""The root program's entry: read the request, hold the part's lock, carry out the verb, answer."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

try:
    import lavalite  # noqa: F401
except ImportError:  # a release, run by its path: what it needs lies beside it
    sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.root import light
from lavalite.sbatchd.attach.root.request import Request

ROLES, VERBS = ("export", "disk", "swap", "circuit"), ("make", "remove")
"""Each role is a module here, with each verb as a function."""


def carry_out(verb: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The answer: what was made, or `error`, a sentence for people."""
    request = Request(
        slug=asked["slug"],
        state_path=Path(asked["state_path"]),
        systemd=asked["systemd"],
        order=asked["order"],
        more=asked.get("more", {}),
    )
    role = str(request.order["role"])
    if role not in ROLES or verb not in VERBS:
        return {"error": f"the root program cannot {verb} a {role}"}
    # Only that one: each brings what takes time to load.
    work = getattr(importlib.import_module(f"lavalite.sbatchd.attach.root.{role}"), verb)
    os.umask(0o077)
    lock = request.file("lock")
    with lock.open("w") as held:
        # One that an earlier sbatchd began may be at work still.
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            answer: dict[str, Any] = work(request)
        except LavaLiteError as error:
            return {"error": str(error)}
        except OSError as error:
            return {"error": f"{error.filename or role}: {error.strerror or error}"}
        if verb == "remove":
            lock.unlink(missing_ok=True)
        return answer


def main(arguments: list[str]) -> int:
    light.enter("pyroute2")
    print(json.dumps(carry_out(arguments[0], json.load(sys.stdin))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
