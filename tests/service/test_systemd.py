"""The systemd executor on a host with a systemd of its own: the contract of all executors, then what is its own."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from lab import Lab

import lavalite

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]  # the first one may have to build the hosts' root

HERE = Path(__file__).parent
PACKAGES = ("pytest", "pytest-asyncio", "pytest-timeout", "iniconfig", "packaging", "pluggy", "pygments",
            "dbus-fast", "structlog", "pydantic", "pydantic-core", "annotated-types", "typing-extensions",
            "typing-inspection")  # fmt: skip
"""Hosts have no way to a package index: they get what is installed here, for the same Python."""
SETTINGS = """[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
timeout = 60
markers = lab
"""


def gather(folder: Path, *more: str) -> None:
    """All that the host needs, in one folder; `more` packages than the executor needs."""
    for package in (*PACKAGES, *more):
        for file in distribution(package).files or ():
            source = Path(str(file.locate()))
            if source.exists() and ".." not in file.parts:
                target = folder / "site" / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    shutil.copytree(Path(lavalite.__file__).parent, folder / "site" / "lavalite")
    for name in ("executor_bench.py", "patience.py", "test_executors.py", "systemd_on_host.py"):
        shutil.copyfile(HERE / name, folder / name)
    (folder / "pytest.ini").write_text(SETTINGS)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("gathered") / "bench"
    gather(folder)
    with Lab(["worker-1"]) as lab:
        there = lab.run("worker-1", "python3 -c 'import sys; print(*sys.version_info[:2])'").stdout.split()
        if there != [str(number) for number in sys.version_info[:2]]:
            pytest.skip(f"the hosts' Python {'.'.join(there)} cannot load what is installed here for another one")
        lab.put("worker-1", folder, "/opt")
        yield lab


@pytest.mark.parametrize("what", ["test_executors.py", "systemd_on_host.py"])
def test_on_a_host(host: Lab, what: str) -> None:
    line = (
        f"cd /opt/bench && LAVALITE_SYSTEMD_BENCH=1 PYTHONPATH=site python3 -m pytest -q -p no:cacheprovider {what}"
    )
    done = host.run("worker-1", line, check=False, timeout_seconds=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout


AFTER_A_REBOOT = """
import asyncio, sys
from pathlib import Path
from lavalite.base.clock import SystemClock
from lavalite.sbatchd.executors import Launch
from lavalite.sbatchd.systemd import SystemdExecutor

async def main():
    clock, folder = SystemClock(), Path("/opt/kept")
    folder.mkdir(mode=0o700, exist_ok=True)
    executor = SystemdExecutor(folder, clock)
    told = []
    listed = await executor.connect(told.append, lambda: None)
    for known in listed.known:
        print(known.id, known.state, known.exit_code, known.reason)
    if not listed.known:
        for job in ("1.0.1", "2.0.1"):
            now, null = clock.boottime(), "/dev/null"
            launch = Launch(job, ["/bin/sleep", "600"], "/", {}, null, null, [], 0, 0, [], {}, None, 5.0, 0.0, now)
            await executor.start(launch)
        while len(told) < 2:
            await asyncio.sleep(0.05)
    await executor.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("orderly", [True, False])
def test_what_ran_when_the_host_went_down_is_lost_and_not_ended_by_itself(host: Lab, orderly: bool) -> None:
    def look() -> list[str]:
        line = "cd /opt/bench && PYTHONPATH=site python3 -"
        return host.run("worker-1", line, stdin=AFTER_A_REBOOT).stdout.splitlines()

    host.run("worker-1", "rm -rf /opt/kept")
    assert look() == []
    if orderly:
        host.run("worker-1", "systemctl poweroff", check=False)
        deadline = time.monotonic() + 30
        while (root := host.run("worker-1", "true", check=False, timeout_seconds=30)).returncode == 0:
            assert time.monotonic() < deadline, root
    host.power_off("worker-1")
    host.power_on("worker-1")
    assert look() == ["1.0.1 ended None lost", "2.0.1 ended None lost"]
