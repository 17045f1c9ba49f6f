"""Virtual machines as units of systemd: on a host with a systemd of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from lab import Lab
from test_systemd import gather

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


def test_machines_are_units_on_a_host(tmp_path: Path) -> None:
    folder = tmp_path / "bench"
    gather(folder, "PyYAML", "pycdlib", "qemu.qmp")
    shutil.copyfile(Path(__file__).with_name("vm_units_on_host.py"), folder / "vm_units_on_host.py")
    with Lab(["worker-1"]) as lab:
        lab.put("worker-1", folder, "/opt")
        command = "cd /opt/bench && PYTHONPATH=site python3 -m pytest -q vm_units_on_host.py"
        done = lab.run("worker-1", command, check=False, timeout_seconds=200)
    assert done.returncode == 0, done.stdout[-6000:]
