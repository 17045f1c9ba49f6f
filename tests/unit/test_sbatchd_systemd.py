"""From a launch to a unit's properties, and from what systemd says of its end to why it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dbus_fast import Message
from hypothesis import given
from hypothesis import strategies as st

from lavalite.base.clock import SystemClock
from lavalite.base.errors import InputError, UnreachableError
from lavalite.sbatchd.config import SbatchdConfig, uses_systemd
from lavalite.sbatchd.executors import Launch
from lavalite.sbatchd.systemd import SystemdExecutor, fence
from lavalite.sbatchd.systemd.bus import CallError, SystemdBus
from lavalite.sbatchd.systemd.records import AttemptFolder, End, Start, noted, outcome
from lavalite.sbatchd.systemd.units import (
    attempt_of,
    cpu_mask,
    gpu_nodes,
    host_slice,
    process_limits,
    slice_properties,
    unit_name,
    unit_path,
    unit_properties,
)

GIB = 2**30
FOLDER = AttemptFolder(Path("/state/systemd"), "1.2.3")


def launch(**more: Any) -> Launch:
    values: dict[str, Any] = {
        "id": "1.2.3",
        "argv": ["program", "$HOME"],
        "cwd": "/home/ada",
        "environment": {"TOKEN": "secret"},
        "stdout_path": "/home/ada/out",
        "stderr_path": "/home/ada/out",
        "own_outputs": [],
        "uid": 1000,
        "gid": 100,
        "cpus": [],
        "limits": {},
        "walltime_seconds": None,
        "grace_seconds": 10.0,
        "fence_after_seconds": 0.0,
        "contact": 0.0,
    }
    return Launch(**(values | more))


def properties(gpus: list[str] | None = None, *, gpus_known: bool = True, **more: Any) -> dict[str, Any]:
    nodes = (gpus or []) if gpus_known else None
    return {
        name: value for name, _, value in unit_properties(launch(**more), FOLDER, ["/usr/bin/python3", "b.py"], nodes)
    }


@pytest.mark.parametrize(
    ("asked", "wanted", "unwanted"),
    [
        (
            {},
            {"User": "1000", "Group": "100", "NoNewPrivileges": True, "Type": "exec"},
            {"MemoryMax", "RuntimeMaxUSec"},
        ),
        (
            {},
            {"Slice": "lavalite-work.slice", "KillMode": "control-group", "TasksMax": 16384, "IOWeight": 100},
            set(),
        ),
        ({}, {"CollectMode": "inactive", "AddRef": True, "OOMPolicy": "kill"}, {"CPUQuotaPerSecUSec", "AllowedCPUs"}),
        ({"cpu_milli": 1500}, {"CPUQuotaPerSecUSec": 1_500_000, "CPUWeight": 150}, {"AllowedCPUs"}),
        ({"cpu_milli": 1}, {"CPUQuotaPerSecUSec": 1000, "CPUWeight": 1}, set()),
        ({"cpu_milli": 512_000}, {"CPUQuotaPerSecUSec": 512_000_000, "CPUWeight": 10_000}, set()),
        ({"cpus": [0, 1, 9]}, {"AllowedCPUs": b"\x03\x02", "CPUAffinity": b"\x03\x02"}, {"CPUQuotaPerSecUSec"}),
        ({"memory_bytes": GIB}, {"MemoryMax": GIB, "MemorySwapMax": 0}, set()),
        ({"memory_bytes": 1}, {"MemoryMax": 16 * 1024 * 1024}, set()),
        ({"walltime_seconds": 90}, {"RuntimeMaxUSec": 90_000_000, "TimeoutStopUSec": 10_000_000}, set()),
        ({"grace_seconds": 0.0}, {"TimeoutStopUSec": 10_000}, set()),  # 0 would be `for ever`
    ],
)
def test_a_request_as_properties(asked: dict[str, Any], wanted: dict[str, Any], unwanted: set[str]) -> None:
    found = properties(**asked)
    assert {name: found.get(name) for name in wanted} == wanted
    assert not unwanted & found.keys()


def test_an_attempt_on_a_host_with_far_memory_may_use_it_and_all_of_them_no_more_than_there_is() -> None:
    far = {"memory_bytes": 5 * GIB, "host": "big-one", "host_near_bytes": 4 * GIB, "host_far_bytes": 2 * GIB}
    found = properties(**far)
    assert found["Slice"] == host_slice("big-one") == r"lavalite-work-host_big\x2done.slice"
    assert (found["MemoryMax"], found["MemorySwapMax"]) == (5 * GIB, 2 * GIB)
    assert {name: value for name, _, value in slice_properties(launch(**far))} == {
        "MemoryMax": 4 * GIB,
        "MemorySwapMax": 2 * GIB,
    }
    assert properties(memory_bytes=GIB)["MemorySwapMax"] == 0, "nobody else swaps to it"


def test_an_attempt_sees_the_devices_that_it_has_and_no_other() -> None:
    without = properties()
    assert without["DevicePolicy"] == "closed" and not any("nvidia" in device for device, _ in without["DeviceAllow"])
    one = [device for device, _ in properties(["/dev/nvidia3"])["DeviceAllow"]]
    assert "/dev/nvidia3" in one and "/dev/nvidiactl" in one and "/dev/nvidia0" not in one
    assert "DevicePolicy" not in properties(gpus_known=False)


def test_nothing_of_the_user_s_is_in_the_unit() -> None:
    """Everybody on the machine may read it, and systemd would expand it."""
    said = repr(properties())
    assert not any(word in said for word in ("secret", "$HOME", "program", "/home/ada"))


def test_memory_is_limited_once() -> None:
    limits = {"RLIMIT_DATA": GIB, "RLIMIT_CORE": 0}
    asked = launch(limits=limits, memory_bytes=GIB)
    assert process_limits(asked, memory_is_limited=True) == {"RLIMIT_CORE": 0}
    assert process_limits(asked, memory_is_limited=False) == limits
    assert process_limits(launch(limits=limits), memory_is_limited=True) == limits


@given(st.sets(st.integers(0, 1023), min_size=1))
def test_a_mask_has_a_bit_for_each_core(cores: set[int]) -> None:
    mask = int.from_bytes(cpu_mask(sorted(cores)), "little")
    assert {core for core in range(1024) if mask >> core & 1} == cores


def test_special_devices_may_be_opened_and_no_others() -> None:
    """What is given out and no device file systemd would refuse to name: its owner and mode say who may open it."""
    allowed = [path for path, _ in properties(special=["/dev/xdma0", "/srv/board"])["DeviceAllow"]]
    assert "/dev/xdma0" in allowed and "/srv/board" not in allowed
    assert not any("xdma" in path for path, _ in properties()["DeviceAllow"])


def test_gpus_are_found_by_what_their_driver_says(tmp_path: Path) -> None:
    for minor, uuid in ((0, "GPU-a"), (7, "GPU-b")):
        folder = tmp_path / f"0000:0{minor}:00.0"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t H100\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n")
    assert gpu_nodes(["GPU-b"], tmp_path) == ["/dev/nvidia7"]
    assert gpu_nodes([], tmp_path) == []
    assert gpu_nodes(["GPU-b", "GPU-c"], tmp_path) is None


def test_names() -> None:
    assert unit_name("lavalite", "12.3.1") == "lavalite-12.3.1.service"
    assert attempt_of("lavalite", "lavalite-12.3.1.service") == "12.3.1"
    assert attempt_of("lavalite", "lavalite-fence.service") == attempt_of("lavalite", "other-1.2.3.service") == ""
    assert unit_path("lavalite-1.0.1.service").endswith("/unit/lavalite_2d1_2e0_2e1_2eservice")


def start(**more: Any) -> Start:
    values: dict[str, Any] = {
        "id": "1.2.3",
        "boot": "b",
        "started_at": 1000.0,
        "booted_at": 50.0,
        "walltime_seconds": 60,
        "memory_bytes": GIB,
        "cpus": [4095],
        "fence_after_seconds": 0.0,
        "contact": 50.0,
    }
    return Start(**(values | more))


@pytest.mark.parametrize(
    ("begun", "wanted", "end", "code", "reason"),
    [
        ("exec\n", "", End("success", "exited", "0"), 0, "exit"),
        ("exec\n", "", End("exit-code", "exited", "203"), 203, "exit"),  # its own, not systemd's
        ("exec\n", "", End("signal", "killed", "SEGV"), -11, "exit"),
        ("exec\n", "", End("core-dump", "dumped", "ABRT"), -6, "exit"),
        ("exec\n", "", End("signal", "killed", "RTMIN+2"), -36, "exit"),
        ("exec\n", "", End("oom-kill", "killed", "KILL"), -9, "memory limit of 1GiB exceeded"),
        ("exec\n", "", End("node-full", "killed", "KILL"), -9, "the node's memory exceeded"),
        ("exec\n", "", End("timeout", "killed", "TERM", up=110.5), -15, "walltime"),
        ("exec\n", "", End("timeout", "exited", "0", up=110.5), 0, "walltime"),
        ("exec\n", "", End("timeout", "exited", "0", up=70.0), 0, "exit"),  # leftovers had to be killed
        ("exec\n", "fence", End("signal", "killed", "KILL"), -9, "fence"),
        ("exec\n", "preempted", End("timeout", "killed", "KILL", up=200.0), -9, "preempted"),
        ("exec\n", "", End("success", "killed", "TERM", machine="stopping"), None, "lost"),
        ("exec\n", "", End("success", "exited", "0", machine="stopping"), None, "lost"),  # it caught that TERM
        ("exec\n", "", End("success", "killed", "TERM", machine="unknown"), None, "lost"),
        ("exec\n", "", End("success", "killed", "TERM", machine="degraded"), -15, "exit"),
        ("exec\n", "", End("success", "exited", "0", machine="unknown"), None, "lost"),
        ("exec\n", "stop", End("success", "killed", "TERM", machine="stopping"), -15, "stop"),
        ("exec\n", "", End("lost"), None, "lost"),
        ("enter /x: No", "", End("exit-code", "exited", "126"), 126, "cannot_start: enter /x: No"),
        ("exec\nrun x: bad format", "", End("exit-code", "exited", "126"), 126, "cannot_start: run x: bad format"),
        ("", "", End("exit-code", "exited", "215"), 126, "cannot_start: pin to cores [4095]: systemd could not"),
        ("", "", End("exit-code", "exited", "217"), 126, "cannot_start: become its user: systemd could not"),
        ("", "stop", End("signal", "killed", "TERM"), -15, "stop"),  # stopped before it began
    ],
)  # fmt: skip
def test_why_it_ended(begun: str, wanted: str, end: End, code: int | None, reason: str) -> None:
    known = outcome(start(), begun, wanted, end)
    assert (known.state, known.exit_code, known.reason) == ("ended", code, reason)
    assert (known.end().started_at is None) == reason.startswith("cannot_start")


def test_a_note_is_whole_or_none() -> None:
    end = End("exit-code", "exited", "7", 1000.5, 60.25)
    assert End.parse(end.text()) == end
    assert all(End.parse(end.text()[:length]) is None for length in range(len(end.text())))


def test_half_a_record_was_never_started(tmp_path: Path) -> None:
    attempt = AttemptFolder(tmp_path, "1.2.3")
    assert attempt.create(start(), {}) and not attempt.create(start(), {})
    (tmp_path / "2.0.1").mkdir()
    (tmp_path / "3.0.1").mkdir()
    (tmp_path / "3.0.1" / "start.json").write_text('{"id": "3.')
    (tmp_path / "gone-4.0.1").mkdir()
    assert noted(tmp_path) == ["1.2.3"]
    assert [path.name for path in tmp_path.iterdir()] == ["1.2.3"]
    assert attempt.start() == start()


def test_who_first_wants_the_end_is_named_and_the_earliest_kill_counts(tmp_path: Path) -> None:
    attempt = AttemptFolder(tmp_path, "1.2.3")
    attempt.create(start(), {})
    for reason, kill_at in (("preempted", None), ("stop", 90.0), ("stop", 80.0), ("stop", 95.0)):
        attempt.want_end(reason, kill_at)
    assert fence.read_json(attempt.path / "ending.json") == {"reason": "preempted", "kill_at": 80.0}


@pytest.mark.parametrize(
    ("after", "contact", "due"), [(0.0, 70.0, None), (30.0, 0.0, 80.0), (30.0, 60.0, 90.0), (30.0, 40.0, 80.0)]
)
def test_the_fence_counts_from_the_last_contact(after: float, contact: float, due: float | None) -> None:
    assert fence.fence_deadline({"fence_after_seconds": after, "contact": 50.0}, contact) == due


def test_contact_of_another_boot_is_none(tmp_path: Path) -> None:
    (tmp_path / "contact").write_text("boot-1 0000000000070.5")
    assert fence.last_contact(tmp_path, "boot-1") == 70.5
    assert fence.last_contact(tmp_path, "boot-2") == 0.0


@pytest.mark.parametrize(
    ("executor", "uid", "first", "answer"),
    [
        ("process", 0, "systemd", False),
        ("auto", 0, "systemd", True),
        ("auto", 0, "init", False),
        ("auto", 1000, "systemd", False),
        ("systemd", 0, "systemd", True),
        ("systemd", 1000, "systemd", "needs root"),
        ("systemd", 0, "init", "process 1 is not systemd"),
    ],
)
def test_which_executor(tmp_path: Path, executor: Any, uid: int, first: str, answer: bool | str) -> None:
    comm = tmp_path / "comm"
    comm.write_text(first + "\n")
    config = SbatchdConfig(cluster="c", state_path=tmp_path, lim_socket_path=tmp_path, executor=executor)
    if isinstance(answer, bool):
        assert uses_systemd(config, uid, comm) is answer
    else:
        with pytest.raises(InputError, match=answer):
            uses_systemd(config, uid, comm)


def test_a_folder_that_no_unit_can_name_is_refused() -> None:
    with pytest.raises(InputError, match="cannot stand in a unit"):
        SystemdExecutor(Path("/srv/50% off"), SystemClock())


class Bus:
    """Answers every call with one error."""

    def __init__(self, error: str) -> None:
        self.error = error

    async def call(self, message: Message) -> Message:
        message.serial = 1
        return Message.new_error(message, self.error, "said why")


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        ("org.freedesktop.systemd1.UnitExists", CallError),
        ("org.freedesktop.DBus.Error.InvalidArgs", CallError),
        # By the bus, in place of a systemd that was executed anew in between: it may have started the unit.
        ("org.freedesktop.DBus.Error.NoReply", UnreachableError),
        ("org.freedesktop.DBus.Error.Disconnected", UnreachableError),
        # By the bus again: it has no systemd to ask.
        ("org.freedesktop.DBus.Error.NameHasNoOwner", UnreachableError),
    ],
)
async def test_a_call_that_systemd_did_not_answer_was_not_refused_by_it(error: str, raised: type[Exception]) -> None:
    bus = SystemdBus(lambda path, state: None, lambda unit, result: None, lambda: None)
    bus._bus = Bus(error)  # type: ignore[assignment]
    with pytest.raises(raised, match="said why"):
        await bus.start("lavalite-1.0.1.service", [])
