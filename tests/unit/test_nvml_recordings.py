"""What recordings of NVML say, by the module pynvml as it is: islands, sick GPUs, GPUs that are lost at any call."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played_nvml import NOT_SUPPORTED, RECORDINGS, playing
from record_nvml import record

from lavalite.model.resources import Device
from lavalite.placement.closeness import near_of
from lavalite.providers.local import discover
from lavalite.providers.nvml import find_gpus
from lavalite.providers.sysfs import nearest_bridges

NAMES = sorted(path.name for path in RECORDINGS.glob("*.json"))
LOST = 15


def found(name: str, fail: Callable[[str, int], int] | None = None) -> tuple[list[Device], list[str]]:
    said: list[str] = []
    with playing(RECORDINGS / name, fail):
        return find_gpus(said.append), said


@pytest.mark.parametrize("name", NAMES)
def test_what_is_played_is_recorded_as_it_was(name: str) -> None:
    with playing(RECORDINGS / name):
        again = json.loads(json.dumps(record(pynvml, "again")))
    first = json.loads((RECORDINGS / name).read_text())
    assert set(first.pop("header")) == {"recorded", "about"} == set(again.pop("header"))
    assert again == first


def test_one_island_of_all_behind_the_switches_of_a_box_and_pairs_behind_each_pcie_switch() -> None:
    gpus, said = found("hgx8.json")
    assert said == []
    assert [gpu.attributes["nvlink"] for gpu in gpus] == ["0"] * 8
    assert [gpu.attributes["pcie"] for gpu in gpus] == ["0", "0", "2", "2", "4", "4", "6", "6"]
    assert {gpu.attributes["mig"] for gpu in gpus} == {"off"}
    assert gpus[0].pci_address == "0000:18:00.0" and gpus[0].memory_bytes == 85_520_809_984


def test_without_nvlink_there_are_no_islands_but_numa_nodes(tmp_path: Path) -> None:
    for at, bus in enumerate(("17", "31", "b1", "ca")):
        folder = tmp_path / f"sys/bus/pci/devices/0000:{bus}:00.0"
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(str(at // 2))
    with playing(RECORDINGS / "pcie4.json"):
        offer = discover("n1", {}, 1, storage_path=tmp_path, root=tmp_path, warn=lambda said: None)
    places = [near_of(gpu) for gpu in offer.devices("gpu")]
    assert [(place.nvlink, place.pcie, place.numa) for place in places] == [
        ("", "", numa) for numa in ("0", "0", "1", "1")
    ]


def test_a_gpu_in_mig_mode_is_its_instances_or_what_it_can_be_divided_into() -> None:
    gpus, _ = found("mig2.json")
    assert [(gpu.mig, gpu.attributes["mig_parent"][-1]) for gpu in gpus] == [("3g.40gb", "7"), ("1g.10gb", "7")]
    with playing(RECORDINGS / "mig2.json"):
        divided = find_gpus(lambda said: None, divide=lambda gpu, instances: not instances)
    assert [gpu.id[-1] if not gpu.mig else gpu.mig for gpu in divided] == ["6", "3g.40gb", "1g.10gb"]
    assert divided[0].attributes["mig_profiles"] == (
        "1g.10gb:142,1g.20gb:246,2g.20gb:285,3g.40gb:495,4g.40gb:571,7g.80gb:1000"
    )


def test_sick_ones_are_not_offered_and_each_is_named_with_its_reason() -> None:
    gpus, said = found("sick6.json")
    assert [gpu.id[4] for gpu in gpus] == ["9"]
    assert [sentence.partition(" is not offered: ")[0][:9] for sentence in said] == [
        "GPU GPU-a",
        "GPU 2",
        "GPU GPU-b",
        "GPU 4",
        "GPU GPU-6",
    ]
    assert "3 uncorrectable memory errors" in said[0] and "GPU is lost" in said[1] and "GPU is lost" in said[3]
    assert "none is left to take its place" in said[2] and "waits to be replaced" in said[4]


def test_what_is_known_of_a_gpu_beside_its_counters_counts_too() -> None:
    said: list[str] = []
    with playing(RECORDINGS / "hgx8.json"):
        first = find_gpus(said.append)[0].id
        assert len(find_gpus(said.append, sick={first: "its fan rattles"})) == 7
    assert said == [f"GPU {first} is not offered: its fan rattles"]


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from([name for name in NAMES if name != "sick6.json"]),
    lost=st.integers(0, 7),
    after=st.integers(0, 60),
    code=st.sampled_from([LOST, 16, 999]),
)
def test_a_gpu_that_is_lost_at_any_call_takes_no_other_with_it(name: str, lost: int, after: int, code: int) -> None:
    calls = count()

    def fail(function: str, gpu: int) -> int:
        return code if gpu == lost and next(calls) >= after else 0

    whole, _ = found(name)
    gpus, said = found(name, fail)
    ids = {gpu.id for gpu in gpus}
    of_lost = {g.id for g in whole if g.attributes["index"] == str(lost)}
    assert {gpu.id for gpu in whole} - of_lost <= ids <= {gpu.id for gpu in whole}
    missing = {gpu.id for gpu in whole} - ids
    assert not missing or (missing == of_lost and said), "all of it, or nothing and a sentence"


def test_an_nvml_that_fails_as_such_offers_nothing_and_says_why() -> None:
    data: dict[str, Any] = json.loads((RECORDINGS / "hgx8.json").read_text()) | {"init_error": 18}
    said: list[str] = []
    with playing(data):
        assert find_gpus(said.append) == []
    assert said and "mismatch" in said[0]
    with playing(data | {"init_error": 9}):
        assert find_gpus(said.append) == [] and len(said) == 1, "no driver is no fault"


def test_what_can_be_shared_by_mps_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-cuda-mps-control"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    data: dict[str, Any] = json.loads((RECORDINGS / "pcie4.json").read_text())
    data["gpus"][1]["compute_mode"] = 2
    data["gpus"][2]["compute_capability"] = [6, 1]
    data["gpus"][3]["compute_capability"] = {"error": NOT_SUPPORTED}
    with playing(data):
        assert [gpu.attributes.get("mps") for gpu in find_gpus(lambda said: None)] == ["yes", None, None, None]
    monkeypatch.setenv("PATH", "")
    with playing(data):
        assert not any(gpu.attributes.get("mps") for gpu in find_gpus(lambda said: None)), "no program, no MPS"


@pytest.mark.parametrize(
    ("paths", "bridges"),
    [
        # two behind each of two switches below one root port, and one at a port of its own
        (["1/2/3", "1/2/4", "1/5/6", "1/5/7", "8"], ["2", "2", "5", "5", "8"]),
        # a switch with one GPU only: with the others it shares the root port
        (["1/2/3", "1/4/5", "1/4/6"], ["1", "4", "4"]),
        (["1", "1", ""], ["1", "1", ""]),
    ],
)
def test_the_lowest_bridge_that_is_shared_is_the_island(tmp_path: Path, paths: list[str], bridges: list[str]) -> None:
    links = []
    for number, path in enumerate(paths):
        steps = [f"0000:0{step}:00.0" for step in path.split("/") if step]
        real = tmp_path.joinpath("sys/devices/pci0000:00", *steps, f"0000:a{number}:00.0")
        real.mkdir(parents=True)
        link = tmp_path / f"{number}"
        link.symlink_to(real)
        links += [link, link]  # as two MIG instances of it
    assert nearest_bridges(links) == [f"0000:0{b}:00.0" if b else "" for b in bridges for _ in range(2)]
