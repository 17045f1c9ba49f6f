"""Workers as the roles deploy them, without Ansible's run: for hosts on which each task of a play takes seconds.

with Cluster(folder, lab, "n1", "n2", uid=5000).running() as cluster:
    job = cluster.submit("true")

The release, the units and the configuration files are the roles' own. The leader is on the test's side.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from cluster import CLUSTER, LimProcess
from lab import Lab
from role_templates import render

from lavalite.api.client import Client, Target
from lavalite.api.models import Submit, Task
from lavalite.base.errors import LavaLiteError
from lavalite.model.job import JobSpec, Request
from lavalite.wire.tokens import NodeKey

ROOT = Path(__file__).resolve().parents[2]
HERE = "198.18.0.1"
LEADER = "c1"
READY_SECONDS = 240.0
FINAL = ("succeeded", "failed", "cancelled")

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, seconds: float = 180.0) -> T:
    """Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)
    return found


class Cluster:
    """One leader here, workers in the lab."""

    def __init__(
        self,
        folder: Path,
        lab: Lab,
        *nodes: str,
        uid: int,
        agent_settings: str = "",
        variables: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """`uid` submits; he has to be known on the workers. `agent_settings`: more lines for their sbatchd.conf;
        `variables` of the roles, by worker."""
        self.lab, self.nodes, self.uid = lab, nodes, uid
        self._agent_settings = agent_settings
        self._variables = variables or {}
        self._folder = folder
        self._sockets = Path(tempfile.mkdtemp(prefix="lavalite-"))
        self._sockets.chmod(0o711)  # the one who submits passes through
        self.bundle = folder / "bundle.json"
        self.keys = {name: NodeKey.load_or_create(folder / name / "node.key") for name in (LEADER, *nodes)}
        bundle = {
            name: {"public": key.public, "role": "candidate" if name == LEADER else "worker"}
            for name, key in self.keys.items()
        }
        self.bundle.write_text(json.dumps(bundle))
        self.leader = LimProcess(folder / LEADER, self._leading(), before=tuple(lab.inside()))

    @contextlib.contextmanager
    def running(self) -> Iterator[Cluster]:
        try:
            self.leader.start()
            self.deploy()
            until(self.ready, f"{', '.join(self.nodes)} ready", READY_SECONDS)
            yield self
        finally:
            self.leader.stop()
            shutil.rmtree(self._sockets)

    # --- the two sides

    def _leading(self) -> dict[str, Any]:
        home, store = self._folder / LEADER, {"kind": "sqlite", "path": str(self._folder / "store.db")}
        listen = f"{HERE}:7869"
        common: dict[str, Any] = {"cluster": CLUSTER, "node": LEADER, "insecure": True, "store": store,
                                  "trust_bundle_path": str(self.bundle), "state_path": str(home)}  # fmt: skip
        scheduler = common | {
            "state_path": str(home / "m"),
            "lim_socket_path": str(home / "lim.sock"),
            "listen": f"{HERE}:6881",
            "api_listen": f"{HERE}:6880",
            "api_socket_path": self.api_socket,
            "compose_seconds": 900,  # a machine that is emulated may take long, beside others
        }
        (home / "mbatchd.conf").write_text(json.dumps(scheduler))
        command = [sys.executable, "-m", "lavalite.mbatchd.daemon", "--config", str(home / "mbatchd.conf")]
        return common | {
            "listen": listen,
            "candidate": True,
            "candidates": [listen],
            "supervise": {"mode": "child", "command": command},
            "mbatchd_address": f"{HERE}:6881",
            "api_url": f"http://{HERE}:6880",
        }

    def deploy(self) -> None:
        """Release, keys, configuration and units onto the workers; their daemons are started."""
        common = self._folder / "release"
        common.mkdir()
        subprocess.run(["tar", "-C", common, "-xzf", build_release()], check=True)
        # What a node does at its first start takes much longer there.
        subprocess.run([sys.executable, "-m", "compileall", "-q", "-j0", common / "lib"], check=True)
        trees = [self._laid_out(node, common) for node in self.nodes]
        with ThreadPoolExecutor(max_workers=len(self.nodes)) as pool:
            list(pool.map(self._land, self.nodes, trees))

    def _laid_out(self, node: str, common: Path) -> Path:
        """All that comes onto a worker, as a tree of files."""
        tree = self._folder / node / "tree"
        variables = {
            "inventory_hostname": node,
            "group_names": ["lavalite_nodes"],
            "lavalite_insecure": True,
            "lavalite_cluster": CLUSTER,
            "lim_candidate": False,
            "lim_candidates": [f"{HERE}:7869"],
            "lim_listen": f"{self.lab.address(node)}:7869",
            "lim_trust_bundle_path": "/etc/lavalite/trust.json",
            **self._variables.get(node, {}),
        }
        units, conf = tree / "etc/systemd/system", tree / "etc/lavalite"
        units.mkdir(parents=True)
        conf.mkdir()
        for role in ("lim", "sbatchd"):
            (units / f"lavalite-{role}.service").write_text(render(role, f"lavalite-{role}.service", **variables))
            (conf / f"{role}.conf").write_text(render(role, f"{role}.conf", **variables))
        with (conf / "sbatchd.conf").open("a") as file:
            file.write(self._agent_settings)
        shutil.copy(self.bundle, conf / "trust.json")
        (tree / "var/lib/lavalite/lim").mkdir(parents=True)
        shutil.copy(self._folder / node / "node.key", tree / "var/lib/lavalite/lim/node.key")
        shutil.copytree(common, tree / "opt/lavalite/current", symlinks=True)
        return tree

    def _land(self, node: str, tree: Path) -> None:
        self.lab.put(node, tree, "/tmp")
        self.lab.run(node, DEPLOY, timeout_seconds=240)

    # --- what people do

    @property
    def api_socket(self) -> str:
        return f"{self._sockets}/api.sock"

    def client(self) -> Client:
        return Client([Target(f"unix:{self.api_socket}")], timeout_seconds=30)

    def ready(self) -> bool:
        try:
            with self.client() as client:
                return client.status().nodes.get("ready", 0) >= len(self.nodes)
        except LavaLiteError:
            return False

    def submit(self, script: str, *, host: str = "", **request: int) -> int:
        """A job of a shell's script, submitted by the user: who connects is who asks. Its output is in ~/JOB.

        `host`: the logical host that it runs on.
        """
        wanted = Request(**{"cpu_milli": 800, **request})  # type: ignore[arg-type]
        spec = JobSpec(command=["/bin/sh", "-c", script], request=wanted, host=host)
        os.setegid(self.uid)
        os.seteuid(self.uid)
        try:
            with self.client() as client:
                return client.submit([Submit(spec=spec)]).ids[0]
        finally:
            os.seteuid(0)
            os.setegid(0)

    def task(self, job: int) -> Task:
        with self.client() as client:
            return next(client.tasks(job))

    def running_task(self, job: int) -> Task:
        return until(lambda: self._task_in(job, "running", *FINAL), f"job {job} runs")

    def end(self, job: int) -> Task:
        return until(lambda: self._task_in(job, *FINAL), f"job {job} ends")

    def _task_in(self, job: int, *states: str) -> Task | None:
        task = self.task(job)
        return task if task.state in states else None

    def cancel(self, job: int) -> None:
        with self.client() as client:
            client.cancel(job)

    def output(self, job: int, stream: str = "stdout") -> str:
        with self.client() as client:
            return b"".join(client.output(job, stream=stream)).decode()

    def run(self, line: str, node: str = "") -> str:
        """On a worker, the first where none is named."""
        return self.lab.run(node or self.nodes[0], line).stdout

    def cgroup_path(self, job: int) -> str:
        """Of the job's first attempt."""
        return f"/sys/fs/cgroup/lavalite.slice/lavalite-work.slice/lavalite-{job}.0.1.service"

    def cgroup(self, job: int, file: str) -> str:
        """What the kernel says of the job's first attempt."""
        return self.run(f"cat {self.cgroup_path(job)}/{file}")


DEPLOY = """
set -e
useradd --system lavalite
cp -a /tmp/tree/. / && rm -r /tmp/tree
chown -R lavalite: /var/lib/lavalite/lim
mkdir -p /var/lib/lavalite/sbatchd
for name in lim sbatchd; do ln -s /opt/lavalite/current/bin/lavalite-$name /usr/sbin/lavalite-$name; done
systemctl daemon-reload
systemctl enable --now -q lavalite-lim lavalite-sbatchd
"""


def build_release() -> Path:
    """The archive of this checkout's node part, as the role makes it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lavalite/releases")
    minor = "{}.{}".format(*sys.version_info[:2])
    command = [sys.executable, str(ROOT / "roles/release/files/build_release.py"), "--checkout", str(ROOT)]
    command += ["--part", "node", "--minor", minor, "--machine", "x86_64", "--cache", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["archive"])
