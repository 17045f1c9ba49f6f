"""This machine as compute groups see it: what there is, how much it is used, and whether its GPUs are well.

A GPU that is sick, or does not answer any more, stays in the offer until the machine boots: what groups hold of it is
held, and nothing new is placed on it, for it is told to be sick. Blocking: call it in a worker thread.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import structlog

from lavalite.base.processes import current_boot_id
from lavalite.groups.embedded.utilization import Utilization
from lavalite.model.resources import GPU, Device, NodeOffer
from lavalite.providers.health import GpuState, HealthWatch
from lavalite.providers.local import discover as discover_this
from lavalite.providers.nvml import find_gpus

log = structlog.get_logger(__name__)
Discover = Callable[..., NodeOffer]
"""As lavalite.providers.local.discover."""
PERCENT = 100


def node_name() -> str:
    """The host's name, as far as names may have such characters."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()).lstrip("_.-")[:63]
    return name or "localhost"


class Machine:
    """`state` is the file whose neighbours tell what must be known beside the ledger. Several threads may call it."""

    def __init__(self, node: str, state: Path, *, nvml: Any, discover: Discover | None) -> None:
        self.node = node
        self._nvml, self._discover = nvml, discover or discover_this
        self._state = state
        self._sick_file = state.with_name(f"{state.name}.sick")
        self._watch = HealthWatch(nvml, events=True)
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        self._states: dict[str, GpuState] = {}
        psutil.cpu_percent()  # what is asked for later is counted from now

    def offer(
        self, previous: NodeOffer | None, made: Collection[str], held: Collection[str], now: float
    ) -> NodeOffer:
        """What there is. `made` are MIG instances of groups, `held` the GPUs that groups hold anything of."""
        boot_id = current_boot_id()
        before = [
            device
            for device in (previous.devices(GPU) if previous is not None and previous.boot_id == boot_id else [])
            if not device.mig
        ]

        def divide(gpu: str, instances: Sequence[str]) -> bool:
            # One that somebody else divides is his: what he made of it is offered as it is.
            return gpu in held or set(instances) <= set(made)

        def find(warn: Callable[[str], None]) -> list[Device]:
            found = find_gpus(warn, self._nvml, also_sick=True, divide=divide)
            there = {id_ for device in found for id_ in (device.id, device.attributes.get("mig_parent", ""))}
            return found + [device for device in before if device.id not in there]

        with self._lock:
            self._look()
            return self._discover(
                self.node, {}, now, storage_path=self._state.parent, previous=previous, gpus=find, warn=self._warn
            )

    def look(self) -> None:
        """How the GPUs are, now."""
        with self._lock:
            self._look()

    def utilization(self, gpus: Mapping[str, Device]) -> Utilization:
        """As of the last look, of these GPUs by id, and of the machine now."""
        states = self._states
        health, measured = {}, {}
        for gpu, device in gpus.items():
            state = states.get(device.attributes.get("mig_parent", gpu))
            if state is None:
                health[gpu] = "NVML does not list it any more; it may have to be reset"
                continue
            if state.sick:
                health[gpu] = state.sick
            if gpu == state.id:
                measured[gpu] = dict(state.utilization)
        node = {"cpu": psutil.cpu_percent() / PERCENT, "memory": psutil.virtual_memory().percent / PERCENT}
        return Utilization({self.node: node}, measured, health)

    def close(self) -> None:
        with self._lock:
            self._watch.close()

    def _look(self) -> None:
        self._watch.add(self._told())
        self._states = self._watch.look(self._warn)
        if (heard := self._watch.sick_until_boot) != self._told():
            draft = self._sick_file.with_suffix(".new")
            try:
                draft.write_text(json.dumps({"boot_id": current_boot_id(), "gpus": heard}), encoding="utf-8")
                draft.replace(self._sick_file)
            except OSError as error:
                self._warn(f"{self._sick_file} cannot be written, and others may use a sick GPU: {error.strerror}")
        for gpu, state in self._states.items():
            if state.sick:
                self._warn(f"GPU {gpu} is sick, and nothing new is placed on it: {state.sick}")

    def _told(self) -> dict[str, str]:
        """What other planners have heard since the machine was booted."""
        try:
            found = json.loads(self._sick_file.read_text(encoding="utf-8"))
            return (
                {str(g): str(why) for g, why in found["gpus"].items()}
                if found["boot_id"] == current_boot_id()
                else {}
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _warn(self, sentence: str) -> None:
        """Once each: what is broken at one look is mostly still broken at the next."""
        if sentence not in self._warned:
            self._warned.add(sentence)
            log.warning("this machine", reason=sentence)
