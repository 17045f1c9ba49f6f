"""Which module has the verbs of a host: prepare, start, kill, discard, and how long it may take to be ready."""

from __future__ import annotations

from types import ModuleType

from . import hosts, machines
from .state import Host

PROGRAMS = ("systemd-nspawn", "qemu-system-x86")
"""The processes that are hosts, by the 15 characters that the kernel keeps of a program's name."""


def verbs(host: Host) -> ModuleType:
    return machines if host.own_kernel else hosts
