"""What keeps parts of a GPU apart: environments, MIG instances with their crashes, MPS servers with their users."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from played_nvml import RECORDINGS, Library, Recording, play, playing

from lavalite.base.errors import LavaLiteError, RefusedError
from lavalite.groups.local.instances import Instances
from lavalite.groups.local.isolation import environment
from lavalite.groups.local.mps import MpsServers
from lavalite.groups.records import GroupRecord
from lavalite.model.job import Share
from lavalite.model.resources import Device

GPU = "GPU-66666666-6666-4666-8666-666666666666"
GIB = 1 << 30
DEADLINE_SECONDS = 30.0


def until(condition: Any) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- environments ---------------------------------------------------------------------------------------------------


def group(isolation: Any = "", amount: int = 2000, devices: Any = ("G1", "G2"), **fields: Any) -> GroupRecord:
    shares = [Share(provider="n1", kind="cpu", amount=100)]
    if devices:
        shares.append(Share(provider="n1", kind="gpu", amount=amount, devices=list(devices)))
    return GroupRecord(id="g1", node="n1", shares=shares, state="allocated", isolation=isolation, **fields)


def told(record: GroupRecord) -> dict[str, str]:
    devices = {"G1": Device(id="G1", memory_bytes=80 * GIB)}
    return environment(record, devices, lambda gpu: Path("/run/mps") / gpu)


def test_a_group_sees_what_it_has_and_nothing_else() -> None:
    ours = {"LAVALITE_COMPUTE_GROUP": "g1"}
    assert told(group()) == ours | {"CUDA_VISIBLE_DEVICES": "G1,G2", "LAVALITE_GPUS": "G1,G2"}
    assert told(group(devices=())) == ours | {"CUDA_VISIBLE_DEVICES": "", "LAVALITE_GPUS": ""}
    part = told(group("mig", 142, ["G1"], instances=["MIG-1"]))
    assert part == ours | {"CUDA_VISIBLE_DEVICES": "MIG-1", "LAVALITE_GPUS": "MIG-1"}
    assert told(group("none", 500, ["G1"])) == ours | {"CUDA_VISIBLE_DEVICES": "G1", "LAVALITE_GPUS": "G1"}


@given(st.integers(1, 999))
def test_a_part_by_mps_never_has_more_than_its_part(milli: int) -> None:
    found = told(group("mps", milli, ["G1"]))
    assert found["CUDA_MPS_PIPE_DIRECTORY"] == "/run/mps/G1" and found["CUDA_VISIBLE_DEVICES"] == "G1"
    percent = int(found["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"])
    assert percent == 1 or milli // 10 == percent
    number, _, limit = found["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"].partition("=")
    mebibytes = int(limit.removesuffix("M"))
    assert number == "0" and mebibytes * 1000 <= milli * 80 * 1024 < (mebibytes + 1) * 1000


# --- MIG instances ----------------------------------------------------------------------------------------------


@pytest.fixture
def box(tmp_path: Path) -> Recording:
    shutil.copy(RECORDINGS / "mig2.json", tmp_path / "box.json")
    return Recording(tmp_path / "box.json")


def there(box: Recording) -> list[str]:
    found = box.read()["gpus"][0]["gpu_instances"]
    return [compute["uuid"] for instance in found for compute in instance["compute_instances"]]


def test_instances_of_a_group_are_made_once_and_removed_once(box: Recording, tmp_path: Path) -> None:
    ours = Instances(tmp_path / "mig")
    with playing(box.path):
        made = ours.make("g1", [(GPU, "1g.10gb"), (GPU, "2g.20gb")])
        assert ours.make("g1", [(GPU, "1g.10gb"), (GPU, "2g.20gb")]) == made == there(box)
        assert ours.ours() == {"g1": made}
        ours.remove("g1")
        ours.remove("g1")
        assert there(box) == [] and ours.ours() == {}


def test_all_of_them_or_none(box: Recording, tmp_path: Path) -> None:
    ours = Instances(tmp_path / "mig")
    with playing(box.path):
        kept = ours.make("g1", [(GPU, "3g.40gb")])
        with pytest.raises(LavaLiteError, match="no room"):
            ours.make("g2", [(GPU, "3g.40gb"), (GPU, "3g.40gb")])
        assert there(box) == kept == ours.ours()["g1"]


def test_after_a_boot_they_are_made_anew(box: Recording, tmp_path: Path) -> None:
    ours = Instances(tmp_path / "mig")
    with playing(box.path):
        before = ours.make("g1", [(GPU, "1g.10gb")])
        with box.changed() as data:
            data["gpus"][0]["gpu_instances"] = []  # they do not outlive the machine
        after = ours.make("g1", [(GPU, "1g.10gb")])
        assert after == there(box) != before
        with box.changed() as data:
            data["gpus"][0]["gpu_instances"] = []
        ours.remove("g1")


def _die_while_making(box: Path, folder: Path, at: int) -> None:
    """In a process of its own, which is killed at its call of that number."""
    steps = iter(range(100))

    def fail(function: str, gpu: int) -> int:
        if "Instance" in function and "Profile" not in function and next(steps) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    class Counting(Library):
        def _call(self, name: str, function: Any, *arguments: Any) -> Any:
            return fail(name, 0) or super()._call(name, function, *arguments)

    import pynvml

    play(box)
    pynvml.nvmlLib = Counting(Recording(box))
    Instances(folder).make("dead", [(GPU, "1g.10gb"), (GPU, "1g.10gb")])
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("at", [0, 2, 4, 6, 8, 10, 12, 14, 99])
def test_what_a_killed_process_was_making_goes_and_what_others_have_stays(
    box: Recording, tmp_path: Path, at: int
) -> None:
    ours = Instances(tmp_path / "mig")
    with playing(box.path):
        before = ours.make("g1", [(GPU, "1g.10gb")])
    process = multiprocessing.get_context("spawn").Process(
        target=_die_while_making, args=(box.path, tmp_path / "mig", at)
    )
    process.start()
    process.join(DEADLINE_SECONDS)
    assert process.exitcode == -signal.SIGKILL
    with playing(box.path):
        after = ours.make("g2", [(GPU, "1g.10gb")])
        ours.remove("dead")  # as whoever finds the record of the dead one does
        assert sorted(there(box)) == sorted(before + after)
        assert len(box.read()["gpus"][0]["gpu_instances"]) == 2, "no GPU instance without a compute instance"
        assert set(ours.ours()) == {"g1", "g2"}


def test_a_damaged_note_is_one_clear_sentence(box: Recording, tmp_path: Path) -> None:
    ours = Instances(tmp_path / "mig")
    with playing(box.path):
        ours.make("g1", [(GPU, "1g.10gb")])
        (tmp_path / "mig" / "g1.json").write_text("{")
        with pytest.raises(LavaLiteError, match=r"mig/g1\.json is damaged\. Remove it, and the MIG instances"):
            ours.remove("g1")


# --- MPS ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MpsServers]:
    monkeypatch.setenv("PATH", f"{Path(__file__).parent / 'fake_mps'}:{os.environ['PATH']}")
    yield MpsServers(tmp_path / "mps")
    shutil.rmtree(tmp_path / "mps", ignore_errors=True)  # what was left of them ends then


def calls(servers: MpsServers, gpu: str) -> list[str]:
    return (servers.directory(gpu) / "calls").read_text().splitlines()


def test_one_server_for_all_groups_of_a_gpu_from_the_first_to_the_last(servers: MpsServers) -> None:
    servers.use("G1", "a")
    servers.use("G1", "b")
    servers.use("G1", "b")
    servers.use("G2", "c")
    assert servers.is_running("G1") and calls(servers, "G1") == ["start G1"] and calls(servers, "G2") == ["start G2"]
    servers.release("G1", "a")
    assert servers.is_running("G1")
    servers.release("G1", "b")
    servers.release("G1", "b")
    servers.release("G9", "b")
    until(lambda: not servers.is_running("G1"))
    assert calls(servers, "G1") == ["start G1", "quit"] and servers.is_running("G2")
    servers.release("G2", "c")


def test_a_server_that_died_is_started_anew(servers: MpsServers) -> None:
    servers.use("G1", "a")
    os.kill(int((servers.directory("G1") / "nvidia-cuda-mps-control.pid").read_text()), signal.SIGKILL)
    until(lambda: not servers.is_running("G1"))
    servers.use("G1", "b")
    assert servers.is_running("G1") and calls(servers, "G1") == ["start G1", "start G1"]
    servers.release("G1", "a")
    servers.release("G1", "b")


def test_another_process_with_the_servers_pid_is_no_server(servers: MpsServers) -> None:
    servers.use("G1", "a")
    (servers.directory("G1") / "nvidia-cuda-mps-control.pid").write_text(str(os.getpid()))
    assert not servers.is_running("G1")


def test_without_the_program_or_if_it_fails_there_is_a_sentence(
    servers: MpsServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MPS_FAILS", "no such device")
    with pytest.raises(LavaLiteError, match="failed for GPU G1: no such device"):
        servers.use("G1", "a")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RefusedError, match=r"not on PATH.*Install it with NVIDIA's driver, or ask for isolation mig"):
        servers.use("G1", "a")
    assert not (servers.directory("G1") / "of" / "a").exists()
