"""The names of all keys. Every key of a cluster starts with `/lavalite/CLUSTER/`.

generation                     raised by a restore from backup; part of the epoch          (restore)
leader                         under the lease of the leading LIM                           (LIM)
writer                         rewritten by each mbatchd before it loads                    (mbatchd)
definition                     the applied pools.yml document                               (mbatchd)
resources/NODE                 what a node offers, versioned                                (mbatchd)
hosts/NAME                     a logical host and its parts                                 (mbatchd)
jobs/NNNNNNNNNNNN              the immutable spec of a job, ids padded so that keys sort    (mbatchd)
tasks/NNNNNNNNNNNN/CCCC        states of 8,192 tasks                                        (mbatchd)
commitments/OWNER              one live commitment; OWNER is `job/ID/TASK` or `host/NAME`   (mbatchd)
reservations/NAME              what is kept for whom, when (model.reservation)              (mbatchd)
fairshare/QUEUE                what was used of a queue, by group and user, decayed         (mbatchd)
counters/jobs                  the highest job id given out                                 (mbatchd)
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Keys:
    """Builds the keys of one cluster."""

    cluster: str

    @property
    def root(self) -> str:
        return f"/lavalite/{self.cluster}/"

    @property
    def generation(self) -> str:
        return f"{self.root}generation"

    @property
    def leader(self) -> str:
        return f"{self.root}leader"

    @property
    def writer(self) -> str:
        return f"{self.root}writer"

    @property
    def definition(self) -> str:
        return f"{self.root}definition"

    @property
    def job_counter(self) -> str:
        return f"{self.root}counters/jobs"

    def resources(self, node: str = "") -> str:
        return f"{self.root}resources/{node}"

    def host(self, name: str = "") -> str:
        return f"{self.root}hosts/{name}"

    def reservation(self, name: str = "") -> str:
        return f"{self.root}reservations/{name}"

    def fairshare(self, queue: str = "") -> str:
        return f"{self.root}fairshare/{queue}"

    def job(self, job_id: int | None = None) -> str:
        return f"{self.root}jobs/" + ("" if job_id is None else f"{job_id:012d}")

    def task_chunk(self, job_id: int | None = None, chunk: int = 0) -> str:
        return f"{self.root}tasks/" + ("" if job_id is None else f"{job_id:012d}/{chunk:04d}")

    def commitment(self, owner: str = "") -> str:
        return f"{self.root}commitments/{owner}"
