"""Ending the attempts that are units, and the unit of fence.py: for who wants nothing left on a machine.

sbatchd itself never does this: attempts outlive it. Spoken through systemctl, since it is run by itself and once.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.systemd.fence import boottime
from lavalite.sbatchd.systemd.records import AttemptFolder
from lavalite.sbatchd.systemd.units import attempt_of, unit_name

LIVE_STATES = "active,activating,deactivating,reloading"
LIST_SECONDS = 20.0
KILLED_SECONDS = 10.0
"""How long what was killed may take to be gone."""


def end_units(folder: Path, *, grace_seconds: float, prefix: str = "lavalite") -> int:
    """Ask each attempt to end, kill what is left after the grace, then end the fence; the number of attempts.

    Raises LavaLiteError where one stays.
    """
    units = _running(prefix)
    for unit in units:
        # What the next sbatchd says of it: it was stopped, and did not just exit.
        attempt = AttemptFolder(folder, attempt_of(prefix, unit))
        with contextlib.suppress(OSError):
            attempt.want_end("stop", boottime() + grace_seconds)
    if units and not _systemctl("stop", units, grace_seconds + 1):
        _systemctl("kill", units, KILLED_SECONDS, "--signal=KILL")
        _systemctl("stop", units, KILLED_SECONDS)
    if left := _running(prefix):
        raise LavaLiteError(
            f"{', '.join(left)} cannot be ended", code="attempts_left", hint="See `systemctl status` of it."
        )
    _systemctl("stop", [unit_name(prefix, "fence")], KILLED_SECONDS)
    return len(units)


def _running(prefix: str) -> list[str]:
    command = ["systemctl", "list-units", "--plain", "--no-legend", f"--state={LIVE_STATES}", f"{prefix}-*.service"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIST_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise LavaLiteError(f"systemd does not list its units ({error})", code="systemd") from None
    units = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    return [unit for unit in units if attempt_of(prefix, unit)]


def _systemctl(verb: str, units: list[str], seconds: float, *options: str) -> bool:
    """Whether systemctl was done with it in time."""
    try:
        subprocess.run(["systemctl", verb, *options, "--", *units], capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return False
    return True
