"""When submits are told to come again later: before memory, or the store's quota, is at risk.

    jobs that have not ended, of all and of one user   memory, here and in the store
    writes that wait for the store                     it takes less than comes in
    what the store has in use, of its quota            etcd that is full takes no writes, and then nothing ends

Only what is new is refused. Room is left for all that brings relief: tasks end, jobs are cancelled and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import structlog

from lavalite.api.status import Headroom
from lavalite.base.clock import Clock
from lavalite.base.errors import BusyError, InputError, LavaLiteError
from lavalite.control.state import ClusterState
from lavalite.mbatchd.config import BackPressure
from lavalite.model.amounts import format_amount
from lavalite.store.base import Store, StoreStatus

LOOK_SECONDS = 5.0
"""After so long the store's size is asked for again."""
FILE_PERCENT = 95
"""Of its quota, what etcd's file may take: etcd counts as full by that, though it uses room in it again."""
RETRY_JOBS_SECONDS, RETRY_QUEUE_SECONDS, RETRY_STORE_SECONDS = 5, 1, 30
SOME_ENDED = "Submit again when some have ended, and put equal jobs into one array."

log = structlog.get_logger(__name__)


class Pressure:
    """`pending_writes` says how many writes wait for the store."""

    def __init__(
        self,
        most: BackPressure,
        max_unfinished_tasks: int,
        state: ClusterState,
        store: Store,
        pending_writes: Callable[[], int],
    ) -> None:
        self._most, self._max_unfinished_tasks = most, max_unfinished_tasks
        self._state, self._store, self._pending_writes = state, store, pending_writes
        self._seen: StoreStatus | None = None

    async def watch(self, clock: Clock) -> None:
        """Look at the store's size now and then, until cancelled. One that does not answer is as big as it was."""
        while True:
            try:
                self._seen = await self._store.status()
            except LavaLiteError as error:  # whatever it is: who only looks at a size ends no scheduler
                log.info("the size of the store is not known", reason=error.fault.message)
            await clock.sleep(LOOK_SECONDS)

    def demand_room(self, user: str, jobs: int, tasks: int) -> None:
        """Raise BusyError where so many more are not let in now, InputError where so many never are.

        What is let in at the same time is not seen: by as much as one batch each, the numbers may be exceeded.
        """
        state, most = self._state, self._most
        if not jobs:
            return
        asked = [
            ("jobs", "", state.unfinished_jobs.total(), jobs, most.jobs),
            ("jobs", f" of {user}", state.unfinished_jobs[user], jobs, most.jobs_per_user),
            ("tasks", "", state.unfinished_tasks, tasks, self._max_unfinished_tasks),
        ]
        for what, whose, _, more, limit in asked:
            if more > limit:
                message = f"{more} {what} at once, and {limit}{whose} is the most that may be there"
                raise InputError(message, code="too_many", hint="Put equal jobs into one array.")
        for what, whose, have, more, limit in asked:
            if have + more > limit:
                raise BusyError(
                    f"{have} {what}{whose} have not ended yet, and {limit} is the most",
                    hint=SOME_ENDED,
                    retry_after_seconds=RETRY_JOBS_SECONDS,
                )
        if (pending := self._pending_writes()) >= most.commit_queue:
            raise BusyError(
                f"{pending} writes wait for the store, and {most.commit_queue} is the most",
                hint="Submit again in a moment.",
                retry_after_seconds=RETRY_QUEUE_SECONDS,
            )
        if why := self._store_is_full():
            raise BusyError(
                why,
                code="store_full",
                hint="Submit again later; lavalite status says how full it is.",
                retry_after_seconds=RETRY_STORE_SECONDS,
            )

    def headroom(self) -> list[Headroom]:
        """How much there is of what is limited, and the user who comes nearest."""
        return list(self._headroom())

    def refuses(self) -> str:
        """Why any job would be refused now, as a sentence; empty while that depends on whose it is."""
        try:
            self.demand_room("", 1, 1)
        except (BusyError, InputError) as error:
            return error.fault.sentence()
        return ""

    def _store_is_full(self) -> str:
        seen = self._seen
        if seen is None:
            return ""
        if any("NOSPACE" in alarm for alarm in seen.alarms):
            return "etcd has raised its alarm NOSPACE and takes no writes"
        if not seen.quota_bytes:
            return ""
        quota = format_amount("memory", seen.quota_bytes)
        for used, part, most in (
            (seen.in_use_bytes, "has in use", self._most.store_percent),
            (seen.size_bytes, "takes on disk", FILE_PERCENT),
        ):
            if used * 100 >= seen.quota_bytes * most:
                percent = used * 100 // seen.quota_bytes
                return f"the store {part} {percent} % of its quota of {quota}, and {most} % is the most"
        return ""

    def _headroom(self) -> Iterator[Headroom]:
        users, most = self._state.unfinished_jobs, self._most
        yield Headroom(what="jobs", used=users.total(), most=most.jobs)
        for user, jobs in users.most_common(1):
            yield Headroom(what=f"jobs of {user}", used=jobs, most=most.jobs_per_user)
        yield Headroom(what="tasks", used=self._state.unfinished_tasks, most=self._max_unfinished_tasks)
        yield Headroom(what="commit queue", used=self._pending_writes(), most=most.commit_queue)
        if self._seen is not None and self._seen.quota_bytes:
            quota = self._seen.quota_bytes
            yield Headroom(what="store", used=self._seen.in_use_bytes, most=quota * most.store_percent // 100)
            yield Headroom(what="store file", used=self._seen.size_bytes, most=quota * FILE_PERCENT // 100)
