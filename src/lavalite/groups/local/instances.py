"""MIG instances that groups of this machine have: made, remembered, and removed, also after a crash.

    FOLDER/lock           held while an instance is made or removed
    FOLDER/GROUP.json     {"wanted": [[GPU, profile]], "before": {GPU: [UUID]}, "made": [UUID] or null}

A file without `made` is of somebody who died while making or removing: whoever holds the lock next removes what
there is beside `before`. Only then is anything else made on a GPU, so that nothing of others is ever removed.
Blocking: call it in a worker thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lavalite.base.errors import LavaLiteError
from lavalite.providers.mig import GPU_GONE, MigInstance, create_instance, instances_of, remove_unfinished

Wanted = Sequence[tuple[str, str]]
"""(GPU's UUID, profile) of each instance."""


class Instances:
    def __init__(self, folder: Path, nvml: Any = None) -> None:
        self._folder, self._nvml = folder, nvml

    def make(self, group: str, wanted: Wanted) -> list[str]:
        """See to it that the group has these instances: their UUIDs. All or none. Raises LavaLiteError."""
        with self._locked():
            known = self._read(group)
            if known is not None and self._all_there(known):
                return list(known["made"])
            if known is not None:
                self._undo(group, known)
            gpus = sorted({gpu for gpu, _ in wanted})
            before = {gpu: [each.id for each in instances_of(gpu, self._nvml)] for gpu in gpus}
            intent: dict[str, Any] = {"wanted": [list(each) for each in wanted], "before": before, "made": None}
            self._write(group, intent)
            made: list[str] = []
            try:
                for gpu, profile in wanted:
                    made.append(create_instance(gpu, profile, self._nvml).id)
            except LavaLiteError:
                self._undo(group, intent)
                raise
            self._write(group, intent | {"made": made})
            return made

    def remove(self, group: str) -> None:
        """Nothing is left of what was made for the group. Raises LavaLiteError while a process uses it."""
        if not self._path(group).exists():
            return
        with self._locked():
            if (known := self._read(group)) is not None:
                self._undo(group, known)

    def ours(self) -> dict[str, list[str]]:
        """Group → UUIDs of what was made for it."""
        if not self._folder.is_dir():
            return {}
        return {
            path.stem: list(found["made"])
            for path in self._folder.glob("*.json")
            if (found := self._read(path.stem)) is not None and found["made"]
        }

    def _all_there(self, known: dict[str, Any]) -> bool:
        made, there = known["made"] or [], {each.id for gpu, _ in known["wanted"] for each in self._of(gpu)}
        return len(made) == len(known["wanted"]) and set(made) <= there  # after a boot there are none

    def _undo(self, group: str, known: dict[str, Any]) -> None:
        """Nothing of it is left, and no note. Raises LavaLiteError; then the note says what there still is."""
        wanted = list(dict.fromkeys((gpu, profile) for gpu, profile in known["wanted"]))
        ours = set(known["made"] or [])
        try:
            if ours:  # what is half removed is found as what is half made
                there = {gpu: [each.id for each in self._of(gpu)] for gpu, _ in wanted}
                others = {gpu: [each for each in ids if each not in ours] for gpu, ids in there.items()}
                known = known | {"before": others, "made": None}
                self._write(group, known)
            for gpu, profile in wanted if ours or known["made"] is None else ():
                self._remove(gpu, profile, known["before"].get(gpu, []))
        except LavaLiteError:
            left = [
                each.id
                for gpu in dict.fromkeys(gpu for gpu, _ in wanted)
                for each in self._of(gpu)
                if each.id not in known["before"].get(gpu, []) and (gpu, each.profile) in wanted
            ]
            self._write(group, known | {"made": left})
            raise
        self._path(group).unlink(missing_ok=True)

    def _of(self, gpu: str) -> list[MigInstance]:
        try:
            return instances_of(gpu, self._nvml)
        except LavaLiteError as error:
            if error.code == GPU_GONE:  # they do not outlive its reset
                return []
            raise

    def _remove(self, gpu: str, profile: str, keep: Collection[str]) -> None:
        try:
            remove_unfinished(gpu, profile, keep, self._nvml)
        except LavaLiteError as error:
            if error.code != GPU_GONE:
                raise

    def _recover(self) -> None:
        """What others began and did not end. What a process still uses stays, until its group is given back."""
        for path in sorted(self._folder.glob("*.json")):
            known = self._read(path.stem)
            if known is not None and known["made"] is None:
                with contextlib.suppress(LavaLiteError):
                    self._undo(path.stem, known)

    def _path(self, group: str) -> Path:
        return self._folder / f"{group}.json"

    def _read(self, group: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._path(group).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            raise LavaLiteError(
                f"{self._path(group)} is damaged", hint="Remove it, and the MIG instances that no group has."
            ) from None
        return found

    def _write(self, group: str, intent: dict[str, Any]) -> None:
        """Durably, whole or not at all."""
        draft = self._path(group).with_suffix(".new")
        with draft.open("w", encoding="utf-8") as file:
            json.dump(intent, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path(group))
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LavaLiteError(f"{self._folder} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._recover()
            yield
        finally:
            os.close(descriptor)
