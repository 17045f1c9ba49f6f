"""Molecule's scenarios as a whole: each role has one, each says what it means, and each begins afresh."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from lab import LabError, clean, state

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = sorted(file.parent for file in (ROOT / "extensions/molecule").glob("*/molecule.yml"))
COMMON = yaml.safe_load((ROOT / "extensions/molecule/config.yml").read_text())
MOLECULE = [str(ROOT / "tools/molecule"), str(Path(sys.executable).parent)]
READY_SECONDS = 300.0  # the releases may have to be made


def steps(scenario: Path) -> list[str]:
    found: list[str] = yaml.safe_load((scenario / "molecule.yml").read_text())["scenario"]["test_sequence"]
    return found


def test_every_role_has_a_scenario_and_there_are_those_of_the_whole() -> None:
    roles = {folder.name for folder in (ROOT / "roles").iterdir()}
    assert {scenario.name for scenario in SCENARIOS} == roles | {"check_mode", "default", "site", "upgrade"}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_scenario_begins_on_fresh_hosts_and_ends_without_any(scenario: Path) -> None:
    sequence = [step for step in steps(scenario) if step != "syntax"]
    assert sequence[0] == "create" and sequence[-1] == "destroy"
    assert any(step.startswith("verify") for step in sequence)
    assert set(COMMON["ansible"]["playbooks"]) == {"create", "destroy"}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_what_a_scenario_names_is_there(scenario: Path) -> None:
    """Molecule itself passes over tests and playbooks that it does not find, and succeeds.

    Without its first one it passes over all side effects.
    """
    said = {"ansible": {"playbooks": {}}} | yaml.safe_load((scenario / "molecule.yml").read_text())
    for step in said["scenario"]["test_sequence"]:
        verb, *named = step.split()
        if verb == "verify":
            for folder in named or ["tests"]:
                assert list((scenario / folder).glob("test_*.py")), f"{scenario.name}: {step}"
        elif verb in ("prepare", "converge", "side_effect"):
            for playbook in [*named, said["ansible"]["playbooks"].get(verb, f"{verb}.yml")]:
                assert (scenario / playbook).is_file(), f"{scenario.name}: {step}"


def test_where_there_can_be_no_hosts_it_says_so_in_one_line_or_fails_if_they_are_demanded(tmp_path: Path) -> None:
    """On a machine that lacks what the lab needs: of programs it has what the shell script itself calls."""
    (tmp_path / "dirname").symlink_to(shutil.which("dirname") or "")
    environment = {"PATH": str(tmp_path)}
    skipped = subprocess.run(MOLECULE, env=environment, capture_output=True, text=True, timeout=60)
    assert (skipped.returncode, skipped.stderr) == (0, "")
    assert re.fullmatch(r"molecule: skipped, the lab needs .*\n", skipped.stdout)
    demanded = environment | {"LAVALITE_LAB": "required"}
    failed = subprocess.run(MOLECULE, env=demanded, capture_output=True, text=True, timeout=60)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert re.fullmatch(r"molecule: the lab needs .*\n", failed.stderr)


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_scenario_begins_afresh_after_one_that_was_cut_off(tmp_path: Path) -> None:
    with _run_of("default", tmp_path / "cut off") as run:
        cut_off = _lab_with_hosts(run)
    _ended_by_cleaning(cut_off)
    with _run_of("default", tmp_path / "again") as run:
        again = _lab_with_hosts(run)
        run.wait(READY_SECONDS)
    said = (tmp_path / "again").read_text()
    assert run.returncode == 0, said[-6000:]
    assert "molecule: default passed in " in said
    assert again not in state.labs()


def _ended_by_cleaning(name: str) -> None:
    """Now, or by a test beside this one; its owner, the shell's child, may outlive the shell by a moment."""
    deadline = time.monotonic() + 20
    while name in state.labs():
        assert time.monotonic() < deadline, f"{name} is still there"
        clean.clean()
        time.sleep(0.05)


@contextmanager
def _run_of(scenario: str, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Molecule's, killed if it has not ended when the block does."""
    with (
        output.open("wb") as said,
        subprocess.Popen([*MOLECULE, scenario], cwd=ROOT, stdout=said, stderr=said, start_new_session=True) as run,
    ):
        try:
            yield run
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)


def _lab_with_hosts(run: subprocess.Popen[bytes]) -> str:
    """The lab of this run, not of a test beside this one, once it has asked its hosts something."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        assert run.poll() is None, "it ended before it had hosts"
        for name in state.labs():
            with suppress(LabError, ProcessLookupError):  # a test beside this one ended it
                lab = state.load(name)
                shared = list((state.folder(name) / "c").glob("*"))
                if lab.owner and os.getsid(lab.owner.pid) == run.pid and set(lab.hosts) == {"a", "b"} and shared:
                    return name
        time.sleep(0.1)
    raise AssertionError(f"no hosts within {READY_SECONDS:g} s")
