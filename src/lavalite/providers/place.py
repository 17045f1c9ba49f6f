"""Where the API is, from what was typed and what stands in the environment.

    --api URL (or unix:/path), LAVALITE_API     there, with LAVALITE_TOKEN; several are separated by commas
    --state DIR, LAVALITE_STATE                 the cluster that `lavalite up` runs in this folder
    neither                                     root where /etc/lavalite exists: this node's daemons (/run/lavalite)
                                                else ~/.local/state/lavalite (XDG_STATE_HOME), where that exists
                                                else this node's daemons, where there are any

On a node, the socket of the scheduler is used where it leads; else LIM says who does, and vouches for who asks.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lavalite.base.errors import InputError, LavaLiteError, RefusedError, UnreachableError

if TYPE_CHECKING:
    from lavalite.api.client import Client
    from lavalite.api.transport import Target

SYSTEM_CONFIGURATION = Path("/etc/lavalite")
SYSTEM_SOCKETS = Path("/run/lavalite")
SYSTEM_AUTHORITY = SYSTEM_CONFIGURATION / "tls" / "ca.crt"
"""The cluster's own, where it has one; LAVALITE_CA names another."""
PATIENCE_SECONDS = 30.0
"""Longer than leadership takes to move, also where the only candidate resigned and waits to let others go first."""
BETWEEN_LEADERS = ("not_leader", "no_leader")
"""What LIM says while leadership moves: to be asked again."""
START_HINT = "Is it running? Start it with `lavalite up`."
SYSTEM_HINT = "Is it running? Look with `systemctl status lavalite-lim`."


@dataclass(frozen=True, slots=True)
class Place:
    """Where to ask: addresses of an API, or a state folder, or (neither) this node's own daemons."""

    api: tuple[str, ...] = ()
    state: Path | None = None

    @property
    def lim_socket(self) -> Path:
        return self.state / "lim" / "lim.sock" if self.state else SYSTEM_SOCKETS / "lim.sock"

    @property
    def api_socket(self) -> Path:
        return self.state / "mbatchd" / "api.sock" if self.state else SYSTEM_SOCKETS / "api.sock"

    def state_folder(self) -> Path:
        """For what acts on a folder: up, down. Raises InputError where an API was named instead."""
        if self.api:
            hint = "Name the folder with --state, and unset LAVALITE_API."
            raise InputError("this acts on a state folder, not on an API elsewhere", field="--api", hint=hint)
        return self.state or default_state()

    def client(self, *, timeout_seconds: float = PATIENCE_SECONDS) -> Client:
        """The API there. Nothing is asked yet."""
        from lavalite.api.client import Client

        ca_path = os.environ.get("LAVALITE_CA", "")
        if not (ca_path or self.api or self.state) and SYSTEM_AUTHORITY.exists():
            ca_path = str(SYSTEM_AUTHORITY)
        return Client(self.targets, timeout_seconds=timeout_seconds, ca_path=ca_path)

    def targets(self) -> Sequence[Target]:
        """Where to ask now; nowhere while leadership moves.

        Raises UnreachableError where neither the scheduler nor the LIM of this machine answers.
        """
        from lavalite.api.transport import Target
        from lavalite.providers import lim_socket

        token = os.environ.get("LAVALITE_TOKEN", "")
        if self.api:
            return [Target(address, token) for address in self.api]
        if answers(self.api_socket):
            return [Target(f"unix:{self.api_socket}")]
        try:
            leader = lim_socket.who_leads(self.lim_socket)
        except UnreachableError as error:
            raise self._nobody(error) from None
        if not leader.api_url:
            return []
        try:
            return [Target(leader.api_url, token or lim_socket.api_token(self.lim_socket))]
        except RefusedError as error:
            if error.code in BETWEEN_LEADERS:
                return []
            raise

    def _nobody(self, error: LavaLiteError) -> UnreachableError:
        where = f"state folder {self.state}" if self.state else f"sockets in {SYSTEM_SOCKETS}"
        if _is_forbidden(self.lim_socket):
            return UnreachableError(
                f"LavaLite's sockets may not be used by this user ({where})", hint="Ask as their owner."
            )
        return UnreachableError(f"LavaLite does not answer ({where})", hint=START_HINT if self.state else SYSTEM_HINT)


def answers(path: Path) -> bool:
    """Whether somebody listens on this Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _is_forbidden(path: Path) -> bool:
    try:
        return path.exists() and not os.access(path, os.W_OK)
    except PermissionError:
        return True


def default_state() -> Path:
    """`lavalite` below XDG_STATE_HOME, or below ~/.local/state."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "state") / "lavalite"


def find_place(api: str = "", state: str = "") -> Place:
    """What was typed before what stands in the environment, before what is found. Raises InputError."""
    if api and state:
        raise InputError("--api and --state exclude each other", field="--api", hint="Give one of the two.")
    if not api and not state:
        api, state = os.environ.get("LAVALITE_API", ""), os.environ.get("LAVALITE_STATE", "")
        api = "" if state else api
    if api:
        return Place(api=tuple(_address(part.strip()) for part in api.split(",") if part.strip()))
    if state:
        return Place(state=Path(state).expanduser().absolute())
    if os.geteuid() == 0 and SYSTEM_CONFIGURATION.is_dir():
        return Place()
    own = default_state()
    return Place() if not own.exists() and SYSTEM_SOCKETS.is_dir() else Place(state=own)


def _address(text: str) -> str:
    if text.startswith(("http://", "https://")) and len(text.partition("://")[2].strip("/")) > 0:
        return text.rstrip("/")
    if text.startswith("unix:/"):
        return text
    hint = "Write https://NODE:6880, or unix:/path/of/api.sock."
    raise InputError(f"{text} is no address of an API", field="--api", hint=hint)
