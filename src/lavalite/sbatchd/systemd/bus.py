"""systemd over D-Bus: calls, properties and signals, and nothing about attempts. Only this file imports dbus-fast."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from lavalite.base.errors import UnreachableError
from lavalite.sbatchd.systemd.units import Property, unit_path

SYSTEMD = "org.freedesktop.systemd1"
MANAGER_PATH, MANAGER = "/org/freedesktop/systemd1", f"{SYSTEMD}.Manager"
UNIT, SERVICE = f"{SYSTEMD}.Unit", f"{SYSTEMD}.Service"
PROPERTIES = "org.freedesktop.DBus.Properties"
CALL_SECONDS = 25.0
ERROR_PREFIX = f"{SYSTEMD}."
BUS_ERRORS = frozenset(
    f"org.freedesktop.DBus.Error.{name}"
    for name in ("NoReply", "Disconnected", "NoServer", "TimedOut", "Timeout", "ServiceUnknown", "NameHasNoOwner")
)
"""Said by the bus where systemd has not answered, while it reexecutes itself for instance: what was asked of it may
have been done."""

OnState = Callable[[str, str], None]
"""A unit's object path, and the ActiveState that it has now."""
OnJob = Callable[[str, str], None]
"""A unit's name, and how its job ended: `done`, `failed`, …"""


class CallError(Exception):
    """systemd says no. `name` is the error's, without systemd's prefix."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text or name)
        self.name = name.removeprefix(ERROR_PREFIX)


class SystemdBus:
    """A connection to the system's bus, subscribed to systemd's units. Calls raise CallError and UnreachableError."""

    def __init__(self, on_state: OnState, on_job: OnJob, lost: Callable[[], None]) -> None:
        self._on_state, self._on_job, self._lost = on_state, on_job, lost
        self._bus: MessageBus | None = None
        self._watching: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        bus = MessageBus(bus_type=BusType.SYSTEM)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await bus.connect()
        except (OSError, TimeoutError, EOFError) as error:
            raise _unreachable(str(error)) from None
        except Exception as error:  # dbus-fast has errors of its own for a bus that answers nonsense
            raise _unreachable(str(error)) from None
        self._bus = bus
        bus.add_message_handler(self._hear)
        await self._match(f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'")
        await self._match(
            f"type='signal',sender='{SYSTEMD}',interface='{PROPERTIES}',member='PropertiesChanged',"
            f"path_namespace='{MANAGER_PATH}/unit',arg0='{UNIT}'"
        )
        await self.manager("Subscribe")
        self._watching = asyncio.create_task(self._watch(bus))

    async def close(self) -> None:
        if self._watching:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        if self._bus:
            self._bus.disconnect()
            self._bus = None

    # --- calls

    async def manager(self, member: str, signature: str = "", *body: Any) -> list[Any]:
        """Call a method of systemd's manager."""
        return await self._call(SYSTEMD, MANAGER_PATH, MANAGER, member, signature, list(body))

    async def start(self, unit: str, properties: Sequence[Property]) -> None:
        """Returns once systemd has taken the job on. CallError `UnitExists` for a unit of that name."""
        await self.manager("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", _variants(properties), [])

    async def change(self, unit: str, properties: Sequence[Property]) -> None:
        """Until the next start of the machine."""
        await self.manager("SetUnitProperties", "sba(sv)", unit, True, _variants(properties))

    async def set_properties(self, unit: str, properties: Sequence[Property]) -> None:
        """Until the next start of the machine."""
        variants = [[name, Variant(signature, value)] for name, signature, value in properties]
        await self.manager("SetUnitProperties", "sba(sv)", unit, True, variants)

    async def property(self, unit: str, interface: str, name: str) -> Any:
        (found,) = await self._call(SYSTEMD, unit_path(unit), PROPERTIES, "Get", "ss", [interface, name])
        return found.value

    async def properties(self, unit: str, interface: str) -> dict[str, Any]:
        (found,) = await self._call(SYSTEMD, unit_path(unit), PROPERTIES, "GetAll", "s", [interface])
        return {name: variant.value for name, variant in found.items()}

    async def active_states(self, pattern: str) -> dict[str, str]:
        """ActiveState of each loaded unit whose name matches a shell's pattern."""
        (units,) = await self.manager("ListUnitsByPatterns", "asas", [], [pattern])
        return {unit[0]: unit[3] for unit in units}

    async def _match(self, rule: str) -> None:
        bus = "org.freedesktop.DBus"
        await self._call(bus, "/org/freedesktop/DBus", bus, "AddMatch", "s", [rule])

    async def _call(
        self, destination: str, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> list[Any]:
        if not self._bus:
            raise _unreachable("not connected")
        try:
            message = Message(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=body,
            )
            async with asyncio.timeout(CALL_SECONDS):
                reply = await self._bus.call(message)
        except (OSError, EOFError) as error:
            raise _unreachable(str(error)) from None
        except TimeoutError:
            raise _unreachable(f"no answer to {member} in {CALL_SECONDS:.0f} s") from None
        if reply is None:
            raise _unreachable("the bus was disconnected")
        if reply.message_type is MessageType.ERROR:
            text = str(reply.body[0]) if reply.body else ""
            if reply.error_name in BUS_ERRORS:
                raise _unreachable(text or str(reply.error_name))
            raise CallError(reply.error_name or "", text)
        return list(reply.body)

    # --- signals

    def _hear(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.member == "JobRemoved" and message.interface == MANAGER:
            _, _, unit, result = message.body
            self._on_job(unit, result)
        elif message.member == "PropertiesChanged" and message.body[0] == UNIT:
            state = message.body[1].get("ActiveState")
            if state is not None and message.path:
                self._on_state(message.path, state.value)

    async def _watch(self, bus: MessageBus) -> None:
        with contextlib.suppress(OSError, EOFError):
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        self._lost()


def _variants(properties: Sequence[Property]) -> list[list[Any]]:
    return [[name, Variant(signature, value)] for name, signature, value in properties]


def _unreachable(why: str) -> UnreachableError:
    return UnreachableError(
        f"systemd cannot be reached over D-Bus ({why})",
        code="systemd",
        hint="See `systemctl status dbus`; attempts that run are not touched by it.",
    )
