"""Kills attempts by deadline whether or not sbatchd lives: a service of its own beside the attempts' units.

    python -I -S fence.py FOLDER PREFIX BOOT_ID

Two deadlines, both in CLOCK_BOOTTIME seconds, so that a machine that slept does not wake up late: the fence, counted
from the last contact with the leader, and the KILL that follows a TERM. (Walltime is systemd's.) It reads what the
executor has made durable in FOLDER, and reads again twice a second: nobody has to reach it, and it may be restarted
at any time. systemctl speaks to systemd without the message bus. BOOT_ID is this boot's as sbatchd sees it: in a
container a confined unit may see the kernel's where others see the container's. Standard library alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.5
REPEAT_SECONDS = 5.0
"""Between two KILLs of what is still there."""
START_NAME, ENDING_NAME, END_NAME, CONTACT_NAME = "start.json", "ending.json", "end", "contact"


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def write_durably(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, also after a loss of power. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, json.dumps(content).encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    fresh.rename(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_json(path: Path) -> dict[str, Any]:
    """Empty where there is none, or half of one."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content


def last_contact(folder: Path, boot: str) -> float:
    try:
        of_boot, sent = (folder / CONTACT_NAME).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return 0.0
    return float(sent) if of_boot == boot else 0.0


def fence_deadline(start: dict[str, Any], contact: float) -> float | None:
    """None: it has no fence."""
    after = start["fence_after_seconds"]
    return max(contact, start["contact"]) + after if after > 0 else None


class Fence:
    def __init__(self, folder: Path, prefix: str, boot: str) -> None:
        self._folder, self._prefix, self._boot = folder, prefix, boot
        self._starts: dict[str, dict[str, Any]] = {}
        self._struck: dict[str, float] = {}

    def look(self) -> None:
        """One pass over all attempts that have not ended."""
        contact, now = last_contact(self._folder, self._boot), boottime()
        here = {entry.name for entry in os.scandir(self._folder) if entry.name[0].isdigit()}
        for gone in self._starts.keys() - here:
            del self._starts[gone]
            self._struck.pop(gone, None)
        for attempt in here:
            if attempt not in self._starts and (start := read_json(self._folder / attempt / START_NAME)):
                self._starts[attempt] = start
            start = self._starts.get(attempt, {})
            if start.get("boot") == self._boot and not (self._folder / attempt / END_NAME).exists():
                try:
                    self._judge(attempt, start, contact, now)
                except (OSError, subprocess.SubprocessError) as error:
                    # A full disk, or a systemd that does not answer: the others' deadlines count all the same.
                    print(f"{attempt}: {error}; trying again", file=sys.stderr, flush=True)

    def _judge(self, attempt: str, start: dict[str, Any], contact: float, now: float) -> None:
        path = self._folder / attempt / ENDING_NAME
        ending = read_json(path)
        fence = fence_deadline(start, contact)
        if fence is not None and fence <= now and ending.get("reason") != "fence":
            # No grace: its successor may start elsewhere soon after this moment. And killed first, noted second.
            self._strike(attempt, now)
            write_durably(path, {"reason": "fence", "kill_at": now})
        elif ending.get("kill_at") is not None and ending["kill_at"] <= now:
            self._strike(attempt, now)

    def _strike(self, attempt: str, now: float) -> None:
        if now < self._struck.get(attempt, -REPEAT_SECONDS) + REPEAT_SECONDS:
            return
        self._struck[attempt] = now
        unit = f"{self._prefix}-{attempt}.service"
        print(f"killing {unit}", flush=True)
        subprocess.run(["systemctl", "kill", "--signal=KILL", "--", unit], check=False, timeout=30)


def main(folder: str, prefix: str, boot: str) -> None:
    fence = Fence(Path(folder), prefix, boot)
    while True:
        fence.look()
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:4])
