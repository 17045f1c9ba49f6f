"""What this node offers, looked at from time to time in a worker thread, and remembered across restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog
from pydantic import ValidationError

from lavalite.base.clock import Clock
from lavalite.lim.config import LimConfig
from lavalite.model.resources import Device, NodeOffer
from lavalite.providers.health import HealthWatch
from lavalite.providers.local import discover
from lavalite.providers.nvml import find_gpus

log = structlog.get_logger(__name__)


class OwnOffer:
    """`current` is what was discovered last. The file keeps its version growing when LIM is started anew."""

    current: NodeOffer

    def __init__(self, config: LimConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._file = config.state_path / "offer.json"
        self._previous = _load(self._file)
        self._warnings: set[str] = set()
        self._health = HealthWatch(events=False)
        """So that a GPU that is sick one moment and well the next does not come and go."""

    async def refresh(self) -> None:
        """Look again. Raises nothing that a later look could mend."""
        found = await asyncio.to_thread(
            discover,
            self._config.node,
            self._config.label_values,
            self._clock.now(),
            storage_path=self._config.storage_path or self._config.state_path,
            previous=self._previous,
            gpus=self._find_gpus,
            special={k: (found.paths, found.model) for k, found in self._config.special.items()},
            warn=self._warn,
        )
        if self._previous is None or found.version != self._previous.version:
            log.info("this node's offer", version=found.version, offered={r.kind: r.amount for r in found.resources})
            await asyncio.to_thread(_save, self._file, found)
        self._previous = self.current = found

    async def run(self) -> None:
        while True:
            await self._clock.sleep(self._config.discover_seconds)
            await self.refresh()

    def _find_gpus(self, warn: Callable[[str], None]) -> list[Device]:
        self._health.look(warn)
        return find_gpus(warn, sick=self._health.sick)

    def _warn(self, sentence: str) -> None:
        """Once each: what is broken at one look is mostly still broken at the next."""
        if sentence not in self._warnings:
            self._warnings.add(sentence)
            log.warning("discovery", reason=sentence)


def _load(file: Path) -> NodeOffer | None:
    try:
        return NodeOffer.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def _save(file: Path, offer: NodeOffer) -> None:
    draft = file.with_name(f".{file.name}.new")
    try:
        draft.write_text(offer.model_dump_json())
        draft.replace(file)
    except OSError as error:
        log.error("the offer cannot be remembered", path=str(file), reason=error.strerror)
