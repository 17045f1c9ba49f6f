"""Answers what applications inside logical hosts ask for, by way of the agents of their anchors.

    HostAsk ──► is it for a host on that node? ──► would it fit? ──► HostGrown ──► wait until it is so ──► HostAnswer

An agent speaks for the hosts that are anchored on its own node, and for no others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from lavalite.base.errors import BusyError, ConflictError, FencedError, LavaLiteError, RefusedError
from lavalite.control.events import HostGrown
from lavalite.control.hosts import composer, growth
from lavalite.control.hosts.moves import is_copying
from lavalite.mbatchd.service import Service
from lavalite.model.host import HostState
from lavalite.model.task import AttemptId
from lavalite.placement.reasons import Refusal
from lavalite.wire.frames import HostAnswer, HostAsk

WAIT_SECONDS = 60.0
MAX_ASKED = 100
"""At a time, of all nodes: each plans anew."""
Post = Callable[..., bool]

log = structlog.get_logger(__name__)


class GrowthDesk:
    """`heard` takes a HostAsk of a node's session; the answer is posted to that node."""

    def __init__(self, service: Service, post: Post, wait_seconds: float = WAIT_SECONDS) -> None:
        self._service, self._post, self._wait_seconds = service, post, wait_seconds
        self._asked: set[asyncio.Task[None]] = set()
        self._busy: set[str] = set()
        """Hosts of which something is being asked: one thing at a time."""

    def heard(self, node: str, ask: HostAsk) -> None:
        task = asyncio.create_task(self._answer(node, ask))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _answer(self, node: str, ask: HostAsk) -> None:
        host, answer = ask.host, HostAnswer(seq=ask.seq)
        try:
            host = self._host_of(node, ask)
            await self._obey(host, ask)
        except LavaLiteError as error:
            answer = HostAnswer(seq=ask.seq, code=error.code, message=str(error))
        self._post(node, answer.model_copy(update={"epoch": self._service.epoch, **self._facts(node, host)}))

    def _host_of(self, node: str, ask: HostAsk) -> str:
        """Raises RefusedError where the node may not ask that."""
        state, name = self._service.state, ask.host
        if ask.attempt:
            try:
                attempt = AttemptId.parse(ask.attempt)
            except ValueError:
                raise RefusedError("an attempt's id is JOB.TASK.ATTEMPT", code="bad_attempt") from None
            job = state.jobs.get(attempt.job)
            name = job.spec.host if job is not None else ""
            if not name:
                raise RefusedError("this job is on no logical host", code="no_host")
        host = state.hosts.get(name)
        if host is None or host.anchor != node:
            raise RefusedError(f"{name[:63]} is no logical host of {node}", code="no_host")
        return name

    async def _obey(self, name: str, ask: HostAsk) -> None:
        if not ask.amounts:
            return
        if name in self._busy or len(self._asked) > MAX_ASKED:
            raise BusyError(f"{name} is being changed already", hint="Ask again in a moment.")
        self._busy.add(name)
        try:
            state = self._service.state
            before = state.hosts[name]
            spec = growth.check(state, name, ask.amounts)
            # In a thread: who asks again and again keeps nobody else waiting.
            plan_all = composer.planner(state, self._service.time.now())
            plan = (await asyncio.to_thread(plan_all, [spec]))[name]
            if isinstance(plan, Refusal):
                raise ConflictError(f"there is no room for that now. {plan.sentence()}", code="no_room")
            await self._service.obey(HostGrown(name, dict(ask.amounts)))
            log.info("a host was asked to change from inside", host=name, amounts=ask.amounts)
            reason = await self._settled(name, spec.amounts)
            if reason:
                await self._service.obey(HostGrown(name, {k: before.amount(k) for k in ask.amounts}))
                raise ConflictError(reason, code="not_composed", hint="It is as it was.")
        finally:
            self._busy.discard(name)

    async def _settled(self, name: str, amounts: dict[str, int]) -> str:
        """Wait until the host is what was asked for; why it is not, when the time is over or a reason stands."""
        try:
            async with asyncio.timeout(self._wait_seconds):
                while True:
                    host = self._service.state.hosts.get(name)
                    if host is None:
                        raise FencedError(f"{name} is no more")
                    if host.state is HostState.COMPOSED:
                        if all(host.amount(kind) == amount for kind, amount in amounts.items()):
                            return ""
                        if host.reason:
                            return host.reason
                    await self._service.next_event()
        except TimeoutError:
            host = self._service.state.hosts.get(name)
            if host is not None and is_copying(host):
                hint = "Ask what it has now and then."
                raise BusyError(f"the disk of {name} is being copied to a larger one", hint=hint) from None
            return f"{name} has not become so within {self._wait_seconds:g} s"

    def _facts(self, node: str, name: str) -> dict[str, object]:
        """Of a host that the node may ask for."""
        state = self._service.state
        host = state.hosts.get(name)
        if host is None or host.anchor != node:
            return {}
        try:
            least, most = growth.limits(state, name)
        except LavaLiteError:
            least, most = {}, {}
        kinds = sorted({part.kind for part in host.parts})
        amounts = {kind: host.amount(kind) for kind in kinds}
        return {"host": name, "amounts": amounts, "least": least, "most": most}
