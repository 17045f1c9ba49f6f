"""docs/vm.md: its commands are run, and what it shows of files is what they may hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import Lab
from test_pages import steps

from lavalite.model.host import VM, VmAsk
from lavalite.sbatchd.vm import console
from lavalite.sbatchd.vm.images import find_image
from lavalite.sbatchd.vm.settings import VmSettings
from lavalite.sbatchd.vm.wanted import wanted
from lavalite.wire.frames import PartOrder

PAGE = Path(__file__).resolve().parents[2] / "docs/vm.md"
PLACE = "/var/lib/lavalite"


def blocks() -> list[dict[str, Any]]:
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)]


@pytest.mark.lab
def test_the_commands_make_a_node_ready(tmp_path: Path) -> None:
    (tmp_path / "debian-12.qcow2").write_bytes(b"QFI\xfb")
    shell = [step.command for step in steps(PAGE) if "console" not in step.command]
    with Lab() as lab:
        for command in shell:
            lab.here(["sh", "-ec", f"cd {tmp_path}; {command.replace(PLACE, str(tmp_path))}"])
        (bridge,) = json.loads(lab.here(["ip", "-json", "address", "show", "dev", "br-hosts"]).stdout)
    assert "UP" in bridge["flags"] and bridge["addr_info"][0]["local"] == "198.19.0.1"
    assert find_image(tmp_path / "images", "debian-12").format == "qcow2"


def test_the_console_is_called_as_shown_and_says_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (command,) = [step.command for step in steps(PAGE) if "console" in step.command]
    _, flag, module, *arguments = command.split()
    assert (flag, module) == ("-m", console.__name__)
    assert console.main([*arguments, "--state", str(tmp_path)]) == 2
    assert "no virtual machine trainer runs on this node" in capsys.readouterr().err


def test_the_files_shown_are_right() -> None:
    settings, pools = blocks()
    shown = VmSettings.model_validate(settings)
    assert shown == VmSettings(vm_bridge="br-hosts")  # what is shown are the defaults
    (host,) = pools["logical_hosts"].values()
    assert host["executor"] == VM
    ask = VmAsk.model_validate(host["vm"], extra="forbid")
    vm = {"cpu_milli": 1000, "memory_bytes": 2**30, "image": ask.image, "network_address": ask.address,
          "gateway": ask.gateway, "ssh_keys": ask.ssh_keys}  # fmt: skip
    assert wanted(PartOrder(part="p", role="vm", host="trainer-1", incarnation=1, vm=vm)).ssh_keys == ask.ssh_keys
