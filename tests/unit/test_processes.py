"""Processes are named for good: a pid that was given to another is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lavalite.base.processes import ProcessIdentity, last_words, start_detached, started_with

STUBBORN = "import signal,sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def identity(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    found = ProcessIdentity.of(process.pid)
    assert found
    return found


def test_a_process_is_ended(sleeper: subprocess.Popen[bytes]) -> None:
    named = identity(sleeper)
    assert named.is_alive()
    named.end(60)
    assert sleeper.wait(60) == -signal.SIGTERM
    assert not named.is_alive()
    named.end(60)


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"boot_id": "another"}])
def test_another_process_under_the_same_pid_is_left_alone(
    sleeper: subprocess.Popen[bytes], change: dict[str, object]
) -> None:
    other = identity(sleeper).model_copy(update=change)
    assert not other.is_alive()
    other.end(0)
    assert other.wait_until_gone(0)
    assert sleeper.poll() is None


def test_one_that_does_not_want_to_end_is_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    identity(process).end(0.1)
    assert process.wait(60) == -signal.SIGKILL
    process.stdout.close()


def test_a_zombie_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    named = identity(sleeper)
    sleeper.kill()
    assert named.wait_until_gone(60)
    assert not named.is_alive()


def test_processes_are_found_by_an_argument(tmp_path: Path) -> None:
    marked = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", str(tmp_path / "a.conf")])
    try:
        assert started_with(str(tmp_path / "a.conf")) == [identity(marked)]
        assert started_with(str(tmp_path / "a")) == []
    finally:
        marked.kill()
        marked.wait()


def test_a_started_program_has_its_own_session_and_log(tmp_path: Path) -> None:
    started = start_detached(["/bin/sh", "-c", "echo said; sleep 100"], tmp_path / "log", tmp_path)
    try:
        assert os.getsid(started.pid) == started.pid
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        os.waitpid(started.pid, 0)


def test_last_words_are_those_for_people(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_words(log) == ""
    log.write_text('first\n{"event": "x"}\nport 1 is taken. Take another.\n{"event": "y"}\n')
    assert last_words(log) == "port 1 is taken. Take another."
