"""What each task said of each host, one line of JSON each, to the file that LAVALITE_TOLD names."""

from __future__ import annotations

import json
import os

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: told
type: aggregate
short_description: What each task said of each host
description: Writes a line of JSON for each task and host to the file that LAVALITE_TOLD names.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "told"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._file = open(os.environ["LAVALITE_TOLD"], "a", encoding="utf-8")  # noqa: SIM115, PTH123

    def _tell(self, result: object, how: str) -> None:
        task = result.task  # type: ignore[attr-defined]
        told = {
            "host": result.host.get_name(),  # type: ignore[attr-defined]
            "role": task._role.get_name() if task._role else "",
            "task": task.name,
            "place": task.get_path(),
            "how": how,
            "changed": how == "ok" and bool(result.result.get("changed")),  # type: ignore[attr-defined]
        }
        self._file.write(json.dumps(told) + "\n")
        self._file.flush()

    def v2_runner_on_ok(self, result: object) -> None:
        self._tell(result, "ok")

    def v2_runner_on_skipped(self, result: object) -> None:
        self._tell(result, "skipped")

    def v2_runner_on_failed(self, result: object, ignore_errors: bool = False) -> None:
        self._tell(result, "failed")

    def v2_runner_on_unreachable(self, result: object) -> None:
        self._tell(result, "unreachable")
