"""As much of QEMU as the disks of a machine need, at the other end of QMP: played, and killed beside at any call."""

from __future__ import annotations

from typing import Any

from lavalite.sbatchd.vm.qmp import PERIPHERAL, QmpError


class KilledError(Exception):
    """sbatchd is, at this call."""


class Qemu:
    """As much of it as disks need. `looks` at a job are what time is: it is ready after `copy_looks` of them."""

    def __init__(self, copy_looks: int = 2) -> None:
        self.objects: set[str] = set()
        self.nodes: dict[str, dict[str, Any]] = {}
        self.devices: dict[str, str] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.copy_looks, self.left = copy_looks, -1
        self.lengths: dict[str, int] = {}
        self.resized: list[tuple[str, int]] = []
        self.breaks = False
        """Whether the target of a copy fails."""

    async def names(self, path: str) -> set[str]:
        self.tick()
        return set(self.devices) if path == PERIPHERAL else self.objects

    async def yank(self, node: str) -> None:
        self.tick()

    def tick(self) -> None:
        if self.left == 0:
            raise KilledError
        self.left -= 1

    async def call(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        self.tick()
        said = getattr(self, command.replace("-", "_"))(
            **{k.replace("-", "_"): v for k, v in (arguments or {}).items()}
        )
        self.tick()  # it was done, and nobody heard
        return said

    def query_named_block_nodes(self, flat: bool) -> list[dict[str, Any]]:
        wires = [{"node-name": n["file"]["node-name"], "image": {}} for n in self.nodes.values() if "size" in n]
        sized = {name: node.get("size") or node["length"] for name, node in self.nodes.items()}
        return [*wires, *({"node-name": name, "image": {"virtual-size": size}} for name, size in sized.items())]

    def query_block(self) -> list[dict[str, Any]]:
        through = {job["source"]: name for name, job in self.jobs.items() if job["status"] != "concluded"}
        return [
            {"qdev": f"{PERIPHERAL}/{name}/virtio-backend", "inserted": {"node-name": through.get(node, node)}}
            for name, node in self.devices.items()
        ]

    def query_jobs(self) -> list[dict[str, Any]]:
        for job in self.jobs.values():
            job["looks"] += 1
            if job["status"] == "running" and job["looks"] > self.copy_looks:
                job["status"] = "ready"
            if self.breaks and job["status"] != "concluded":
                job |= {"status": "concluded", "error": "Input/output error"}
        return [{"id": name, **job} for name, job in self.jobs.items()]

    def object_add(self, id: str, **_: Any) -> None:
        assert id not in self.objects
        self.objects.add(id)

    def object_del(self, id: str) -> None:
        assert not any(node.get("tls-creds") == id for node in self.nodes.values())
        self.objects.remove(id)

    def blockdev_add(self, node_name: str, **more: Any) -> None:
        assert node_name not in self.nodes
        self.nodes[node_name] = {"length": self.lengths.get(node_name, 512), **more}

    def blockdev_reopen(self, options: list[dict[str, Any]]) -> None:
        (changed,) = options
        assert changed["file"] == self.nodes[changed["node-name"]]["file"]["node-name"]
        self.nodes[changed["node-name"]]["size"] = 0

    def block_resize(self, node_name: str, size: int) -> None:
        assert not self.nodes[node_name].get("size"), "fixed"
        self.resized.append((node_name, size))

    def blockdev_del(self, node_name: str) -> None:
        used = {*self.devices.values(), *self.jobs} | {
            each
            for job in self.jobs.values()
            if job["status"] != "concluded"
            for each in (job["source"], job["target"])
        }
        assert node_name not in used
        del self.nodes[node_name]

    def device_add(self, id: str, drive: str, serial: str, bus: str, **_: Any) -> None:
        if id in self.devices:
            raise QmpError(f"Duplicate device ID '{id}'")
        assert serial == id and bus and drive not in self.devices.values()
        self.devices[id] = drive

    def device_del(self, id: str) -> None:
        del self.devices[id]

    def qom_get(self, path: str, property: str) -> str:
        return f"/machine/port{sorted(self.devices).index(path.rpartition('/')[2])}"

    def blockdev_mirror(self, job_id: str, device: str, target: str, sync: str, copy_mode: str, **more: Any) -> None:
        assert (sync, copy_mode, more["filter_node_name"]) == ("full", "write-blocking", job_id)
        assert device in self.devices.values() and target in self.nodes and job_id not in self.jobs
        first, second = ({"node-name": "", **self.nodes[name]} for name in (device, target))
        assert (first.get("size") or first["length"]) == (second.get("size") or second["length"]), "as long"
        self.jobs[job_id] = {"source": device, "target": target, "status": "running", "looks": 0}

    def job_complete(self, id: str) -> None:
        job = self.jobs[id]
        assert job["status"] == "ready", "not before it holds all"
        self.devices = {n: job["target"] if node == job["source"] else node for n, node in self.devices.items()}
        job["status"] = "concluded"

    def job_cancel(self, id: str) -> None:
        self.jobs[id] |= {"status": "concluded", "error": "Operation canceled"}

    def job_dismiss(self, id: str) -> None:
        assert self.jobs.pop(id)["status"] == "concluded"
