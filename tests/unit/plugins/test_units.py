"""The units that the roles lay down, as they come out of the templates with the roles' own defaults."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from role_templates import render

MOST_EXPOSED = {"lim": 2.0, "mbatchd": 2.0, "sbatchd": 4.5}
"""As systemd-analyze counts it: 0 is locked up, 10 may do anything."""


def settings(unit: str, name: str) -> list[str]:
    """All values of a setting, in their order."""
    return re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)


def analyzer() -> str:
    """systemd-analyze, or a skip: a failure where the lab must be complete."""
    found = shutil.which("systemd-analyze")
    if not found:
        reason = "no systemd-analyze on PATH: install systemd"
        if os.environ.get("LAVALITE_LAB") == "required":
            pytest.fail(f"LAVALITE_LAB=required, but {reason}")
        pytest.skip(reason)
    return found


@pytest.mark.parametrize(("role", "most"), MOST_EXPOSED.items())
def test_units_are_confined(role: str, most: float, tmp_path: Path) -> None:
    unit = tmp_path / f"lavalite-{role}.service"
    unit.write_text(render(role, unit.name))
    command = [analyzer(), "security", "--offline=true", "--no-pager", str(unit)]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert level and done.stderr == "", done.stdout + done.stderr
    assert float(level[1]) <= most, done.stdout


def test_work_inherits_no_restriction_of_the_agent_whose_keeper_starts_it() -> None:
    for executor in ("process", "auto"):
        unit = render("sbatchd", "lavalite-sbatchd.service", sbatchd_executor=executor)
        confining = ("Protect", "Private", "Restrict", "SystemCall", "Capability", "NoNew", "Memory", "ReadWrite")
        assert [line for line in unit.splitlines() if line.startswith(confining)] == []
        assert settings(unit, "KillMode") == ["process"]


def test_a_store_in_a_file_may_be_written_by_those_who_share_it() -> None:
    store = {"kind": "sqlite", "path": "/srv/lavalite/store.db"}
    for role, name in (("lim", "lim_store"), ("mbatchd", "mbatchd_store")):
        unit = render(role, f"lavalite-{role}.service", **{name: store})
        (writable,) = settings(unit, "ReadWritePaths")
        assert {"/srv/lavalite", "/run/lavalite", f"/var/lib/lavalite/{role}"} == set(writable.split())


def test_only_who_sets_an_address_may_set_addresses() -> None:
    plain = render("lim", "lavalite-lim.service")
    assert settings(plain, "CapabilityBoundingSet") == [""] and settings(plain, "AmbientCapabilities") == []
    vip = {"lim_vip": "198.18.0.200/24", "lim_vip_interface": "eth0"}
    unit = render("lim", "lavalite-lim.service", **vip)
    assert settings(unit, "AmbientCapabilities") == ["CAP_NET_ADMIN CAP_NET_RAW"]
    worker = render("lim", "lavalite-lim.service", **vip, group_names=["lavalite_nodes"])
    assert settings(worker, "AmbientCapabilities") == []


def test_one_supervisor_starts_the_scheduler_again() -> None:
    by_lim = render("mbatchd", "lavalite-mbatchd.service")
    by_lock = render("mbatchd", "lavalite-mbatchd.service", lim_supervises_mbatchd=False)
    assert (settings(by_lim, "Restart"), settings(by_lock, "Restart")) == (["no"], ["always"])
    assert settings(by_lock, "StartLimitIntervalSec") == ["0"], "a path unit would be given up with it"
    assert all(settings(unit, "ConditionPathExists") == ["/run/lavalite/master.lock"] for unit in (by_lim, by_lock))


@pytest.mark.parametrize(
    ("run_as", "supervises", "mode"),
    [
        ("systemd", True, "systemd"),
        ("systemd", False, "lock"),
        ("process", True, "child"),
        ("process", False, "none"),
    ],
)
def test_who_runs_the_scheduler_follows_from_one_variable(run_as: str, supervises: bool, mode: str) -> None:
    text = render("lim", "lim.conf", lim_run_as=run_as, lim_supervises_mbatchd=supervises)
    assert yaml.safe_load(text)["supervise"]["mode"] == mode


def test_with_an_address_that_follows_the_leader_the_api_listens_on_all() -> None:
    for vip, listen in (("", "10.0.0.1:6880"), ("10.0.0.9/24", "0.0.0.0:6880"), ("fd00::9/64", "[::]:6880")):
        config = yaml.safe_load(render("mbatchd", "mbatchd.conf", lim_vip=vip, ansible_host="10.0.0.1"))
        assert (config["api_listen"], config["api_url"]) == (listen, "http://10.0.0.1:6880")
