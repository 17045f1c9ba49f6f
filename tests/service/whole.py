"""A whole cluster as real processes on loopback: LIMs, the mbatchd that the leader starts, and an sbatchd a node.

with Whole(tmp_path, {"n1": 9, "n2": 5}, store=…).running() as cluster:
    leader = await cluster.serving()
    job = cluster.submit(leader, ["true"])
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from cluster import CLUSTER, DaemonProcess, LimCluster, LimProcess, until
from ports import free_ports

from lavalite.api.client import Client, Target
from lavalite.api.models import Job, Submit, Task
from lavalite.base.errors import LavaLiteError
from lavalite.model.job import JobSpec
from lavalite.sbatchd import ending


class Whole:
    """Candidates with priorities, each a worker too, and `workers`. `tls` is what each daemon of a node is given."""

    def __init__(
        self,
        folder: Path,
        candidates: dict[str, int],
        workers: tuple[str, ...] = (),
        *,
        store: dict[str, Any],
        tls: dict[str, dict[str, str]] | None = None,
        **options: Any,
    ) -> None:
        self.folder, self._tls = folder, tls or {}
        command = (sys.executable, "-m", "lavalite.mbatchd.daemon", "--config", f"{folder}/{{node}}/mbatchd.conf")
        self.lims = LimCluster(folder, candidates, workers, store=store, command=command, **options)
        self.agents: dict[str, DaemonProcess] = {}
        ports = iter(free_ports(2 * len(candidates)))
        for node in candidates:
            listen, api = f"127.0.0.1:{next(ports)}", f"127.0.0.1:{next(ports)}"
            scheme = "https" if node in self._tls else "http"
            self.lims[node].config |= {
                "mbatchd_address": listen,
                "api_url": f"{scheme}://{api}",
                **self._secured(node),
            }
            self._configure_scheduler(node, store, listen, api)
        for node in (*candidates, *workers):
            self.agents[node] = DaemonProcess(folder / node, "sbatchd", "lavalite.sbatchd.daemon", self._agent(node))

    def _configure_scheduler(self, node: str, store: dict[str, Any], listen: str, api: str) -> None:
        home = self.folder / node
        config = {
            "cluster": CLUSTER,
            "node": node,
            "state_path": str(home / "m"),
            "lim_socket_path": str(home / "lim.sock"),
            "store": store,
            "listen": listen,
            "api_listen": api,
            "trust_bundle_path": str(self.lims.bundle_path),
            "beat_seconds": 0.5,
            **self._secured(node),
        }
        (home / "mbatchd.conf").write_text(yaml.safe_dump(config))

    def _agent(self, node: str) -> dict[str, Any]:
        return {
            "cluster": CLUSTER,
            "node": node,
            "state_path": str(self.folder / node / "s"),
            "lim_socket_path": str(self.folder / node / "lim.sock"),
            "allow_root": os.geteuid() == 0,
            "keeper_idle_seconds": 1.0,
            **self._secured(node),
        }

    def _secured(self, node: str) -> dict[str, Any]:
        return {"tls": self._tls[node]} if node in self._tls else {}

    @contextlib.contextmanager
    def running(self) -> Iterator[Whole]:
        with self.lims.running():
            try:
                for agent in self.agents.values():
                    agent.start()
                yield self
            finally:
                for agent in self.agents.values():
                    with contextlib.suppress(OSError):
                        agent.stop()
                    # Attempts outlive their agent, and so they would a test that failed in the middle.
                    with contextlib.suppress(LavaLiteError):
                        ending.main([agent.config["state_path"]])

    async def serving(self, seconds: float = 30, *, above: tuple[int, int] = (0, 0), nodes: int = 0) -> LimProcess:
        """The LIM that leads above an epoch, once its mbatchd answers and so many nodes (default: all) are ready."""

        async def look() -> LimProcess | None:
            # Anew each time: who leads may hand over before its scheduler serves.
            leader = await self.lims.leader(seconds, above=above)
            try:
                with self.client(leader) as client:
                    ready = client.status().nodes.get("ready", 0)
            except LavaLiteError:
                return None
            return leader if ready >= (nodes or len(self.agents)) else None

        found: LimProcess = await until(look, seconds, "mbatchd answers and its nodes are ready")
        return found

    def client(self, lim: LimProcess) -> Client:
        """To the API of one node, over its Unix socket. Does not follow the leader."""
        return Client([Target(f"unix:{lim.folder}/m/api.sock")], timeout_seconds=30)

    def submit(self, lim: LimProcess, command: list[str], **fields: Any) -> int:
        with self.client(lim) as client:
            return client.submit([Submit(spec=JobSpec(command=command, **fields))]).ids[0]

    def job(self, lim: LimProcess, job_id: int) -> Job:
        with self.client(lim) as client:
            return client.job(job_id)

    def tasks(self, lim: LimProcess, job_id: int) -> list[Task]:
        with self.client(lim) as client:
            return list(client.tasks(job_id))

    async def ended(self, lim: LimProcess, job_id: int, seconds: float = 60) -> Job:
        """The job, once it has."""

        async def look() -> Job | None:
            job = self.job(lim, job_id)
            return job if job.state in ("succeeded", "failed", "cancelled") else None

        found: Job = await until(look, seconds, f"job {job_id} ends")
        return found

    def scheduler_pid(self, lim: LimProcess) -> int:
        return int((lim.folder / "mbatchd.pid").read_text().split()[0])
