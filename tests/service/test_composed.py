"""A logical host of three machines, as Ansible makes it: CPU here, memory there, its disk elsewhere.

The anchor is emulated, some ten times slower than this machine. One site serves all tests; each makes the hosts that
it needs, and leaves nothing of them.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from composed_site import ANCHOR, DISK, HOST, MEMORY, MIB, NODES, PERSON, ComposedSite, definition
from deployed import FINAL, until
from lab import Lab

from lavalite.api.models import EntryPut
from lavalite.base.errors import UnreachableError

pytestmark = [
    pytest.mark.lab(kernel=True),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.xdist_group("composed"),
]

NEAR_MIB, FAR_MIB, GROWN_FAR_MIB = 128, 128, 160
DISK_MIB, GROWN_DISK_MIB = 256, 384
FILLS_MIB = 200
"""More than is near, and less than near and far together."""
CIRCUIT = "400Mbit/s"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposedSite]:
    folder = tmp_path_factory.mktemp("composed")
    with Lab(NODES, kernels=[ANCHOR]) as lab, ComposedSite(folder, lab).running() as made:
        yield made


@pytest.fixture
def clean(site: ComposedSite) -> Iterator[ComposedSite]:
    """Without hosts, before and after; what the test before left would be counted as this one's."""
    site.apply()
    before = site.traces()
    yield site
    site.end_jobs()  # those of a test that failed
    site.apply()
    until(lambda: site.host() is None, "the host is gone")
    assert site.traces() == before, "what a host took is given back, on all workers"


def hosts(site: ComposedSite, *, far: int = FAR_MIB, disk: int = DISK_MIB, **more: Any) -> dict[str, dict[str, Any]]:
    """The host, and a larger one, so placed first, that leaves it NEAR_MIB of the anchor's memory."""
    left = site.offered(ANCHOR, "memory") // MIB - NEAR_MIB
    return {
        "ballast": {"cpu": 1, "memory": f"{left}MiB"},
        HOST: {
            "cpu": 1,
            "memory": f"{NEAR_MIB + far}MiB",
            "far": {"memory": "60%", "circuit": CIRCUIT},
            "storage": {"size": f"{disk}MiB", "iops": 2000, "pool": "flash", "circuit": CIRCUIT},
            **more,
        },
    }


def amounts(host: dict[str, Any]) -> dict[tuple[str, str], int]:
    """How much of each kind a host has of each provider, in however many parts."""
    found: dict[tuple[str, str], int] = {}
    for part in host["parts"]:
        found[part["kind"], part["provider"]] = found.get((part["kind"], part["provider"]), 0) + part["amount"]
    return found


def lines(play: str) -> list[str]:
    """What a play's diff adds, without the quotes of JSON."""
    return [line[1:].strip(' ",') for line in play.splitlines() if line.startswith("+")]


def test_what_would_be_composed_is_shown_and_nothing_is_done_until_it_is_asked_for(clean: ComposedSite) -> None:
    before = clean.traces()
    planned = lines(clean.apply("--check", "--diff", **hosts(clean)))
    assert f"anchored on {ANCHOR}" in planned
    for part in (f"memory {FAR_MIB}MiB of {MEMORY}", f"storage {DISK_MIB}MiB of {DISK}"):
        found = next((line for line in planned if line.startswith(part)), f"no {part} in {planned}")
        assert f"by circuit {CIRCUIT} over " in found
    assert clean.host() is None and clean.traces() == before
    taken = lines(clean.apply("--diff", **hosts(clean)))
    assert taken == planned, "nothing has changed in between, so it takes exactly what was shown"
    made = clean.host()
    assert made is not None and made["state"] == "composed"
    for circuit in made["circuits"]:
        assert any(" ".join(circuit["links"]) in line for line in planned)


# On the host, as its user: fill the memory, wait for `go`, find all of it again, and write and read the disk.
WORK = f"""
cd "$LAVALITE_SCRATCH" && exec python3 - <<'END'
import hashlib, mmap, os, pathlib, time

def size_mib():
    found = os.statvfs(".")
    return found.f_blocks * found.f_frsize >> 20

home, pages = pathlib.Path.home(), {FILLS_MIB} * 256
memory = mmap.mmap(-1, pages * 4096)
for page in range(pages):
    memory[page * 4096:page * 4096 + 8] = page.to_bytes(8, "big")
pathlib.Path("kept").write_bytes(b"before it grew" * 100000)
(home / "full").touch()
while not (home / "go").exists():
    time.sleep(0.2)
assert all(int.from_bytes(memory[page * 4096:page * 4096 + 8], "big") == page for page in range(pages))
block = os.urandom(2**20)
with open("file", "wb") as file:
    for number in range(8):
        file.write(block)
    file.flush()
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
assert pathlib.Path("file").read_bytes() == block * 8
assert pathlib.Path("kept").read_bytes() == b"before it grew" * 100000
print("whole", size_mib())
END
"""


def test_work_uses_what_is_elsewhere_while_it_grows(clean: ComposedSite) -> None:
    site, cluster = clean, clean.cluster
    site.apply(**hosts(site))
    made = site.host()
    assert made is not None and (made["state"], made["step"], made["degraded"]) == ("composed", "", [])
    assert amounts(made) == {
        ("cpu", ANCHOR): 1000,
        ("memory", ANCHOR): NEAR_MIB * MIB,
        ("memory", MEMORY): FAR_MIB * MIB,
        ("storage", DISK): DISK_MIB * MIB,
    }
    assert {circuit["provider"]: circuit["bits_per_second"] for circuit in made["circuits"]} == {
        MEMORY: 400_000_000,
        DISK: 400_000_000,
    }
    (row,) = [line for line in site.lavalite("hosts").splitlines() if line.startswith(HOST)]
    assert f"{NEAR_MIB}MiB + {FAR_MIB}MiB far" in row and f"{DISK_MIB}MiB at {DISK}" in row

    cluster.run(f"rm -f ~{PERSON}/full ~{PERSON}/go")
    job = cluster.submit(WORK, host=HOST, memory_bytes=(FILLS_MIB + 40) * MIB)
    until(lambda: cluster.task(job).state in FINAL or cluster.run(f"ls ~{PERSON}").count("full"), "memory is full")
    assert cluster.running_task(job).state == "running", cluster.output(job, "stderr") + site.journals()
    assert swapped_mib(site) >= FILLS_MIB - NEAR_MIB

    site.apply(**hosts(site, far=GROWN_FAR_MIB))
    grown = site.host()
    assert grown is not None and grown["state"] == "composed"
    assert amounts(grown)["memory", MEMORY] == GROWN_FAR_MIB * MIB
    assert cluster.task(job).state == "running", "it runs on"
    cluster.run(f"touch ~{PERSON}/go")
    ended = cluster.end(job)
    assert ended.state == "succeeded", cluster.output(job, "stderr") + site.journals()
    word, size = cluster.output(job).split()
    assert word == "whole" and DISK_MIB * 3 // 4 < int(size) <= DISK_MIB


def test_its_disk_grows_by_moving_to_a_larger_one_and_does_not_shrink(clean: ComposedSite) -> None:
    clean.apply(**hosts(clean))
    look = 'echo "$LAVALITE_SCRATCH"; cat "$LAVALITE_SCRATCH/note"; df --output=size -m "$LAVALITE_SCRATCH" | tail -1'
    before = clean.on_host(f'echo kept > "$LAVALITE_SCRATCH/note"; {look}').split()
    clean.apply(**hosts(clean, disk=GROWN_DISK_MIB))
    host = clean.host()
    assert host is not None and host["state"] == "composed"
    assert amounts(host)["storage", DISK] == GROWN_DISK_MIB * MIB
    until(lambda: int(clean.on_host(look).split()[2]) > DISK_MIB, "the file system has grown", 60)
    after = clean.on_host(look).split()
    assert after[:2] == before[:2] and after[1] == "kept"
    said = clean.refused(**hosts(clean))
    assert "does not shrink" in said
    assert clean.on_host('cat "$LAVALITE_SCRATCH/note"').strip() == "kept"


def swapped_mib(site: ComposedSite) -> int:
    """How much of the anchor's memory is in swap."""
    kib = [int(line.split()[3]) for line in site.cluster.run("cat /proc/swaps").splitlines()[1:]]
    return sum(kib) // 1024


def test_ansible_sees_its_parts_and_runs_on_it(clean: ComposedSite) -> None:
    clean.apply(**hosts(clean))
    (told,) = clean.module("logical_host_info", name=[HOST])["hosts"]
    assert (told["step"], told["degraded"], told["executor"], told["drained"]) == ("", [], "bare", False)
    known = clean.hostvars()
    assert (known["lavalite_state"], known["lavalite_anchor"], known["lavalite_executor"]) == (
        "composed",
        ANCHOR,
        "bare",
    )
    parts = {(part["kind"], part["provider"]): part for part in known["lavalite_parts"]}
    circuits = {circuit["id"]: circuit for circuit in known["lavalite_circuits"]}
    for kind, provider in (("memory", MEMORY), ("storage", DISK)):
        circuit = circuits[parts[kind, provider]["circuit"]]
        assert circuit["provider"] == provider and circuit["links"]
    said = clean.on_host('echo "$LAVALITE_HOST"; df --output=size -m "$LAVALITE_SCRATCH" | tail -1')
    name, size = said.split()
    assert name == HOST and DISK_MIB * 3 // 4 < int(size) <= DISK_MIB


def test_a_service_is_put_onto_it(clean: ComposedSite) -> None:
    clean.apply(**hosts(clean))
    try:
        first, second = (clean.playbook("logical_service") for _ in range(2))
    finally:
        clean.cluster.run(REMOVE_SERVICE)
    assert f"storage {DISK_MIB * MIB} of {DISK}, by circuit" in first
    (again,) = re.findall(rf"^{HOST} .*changed=(\d+) .*failed=(\d+)", second, re.MULTILINE)
    assert again == ("0", "0")


REMOVE_SERVICE = """
systemctl disable --now -q lavalite-notes.service
rm -rf /etc/systemd/system/lavalite-notes.service /usr/local/lib/lavalite-notes /var/lib/lavalite-notes
systemctl daemon-reload
"""


def test_it_is_drained_and_then_taken_apart_by_the_module(clean: ComposedSite) -> None:
    made = hosts(clean)
    clean.apply(**made)
    job = clean.cluster.submit(f"until [ -e ~{PERSON}/leave ]; do sleep 0.5; done", host=HOST)
    clean.cluster.running_task(job)
    late = clean.module("logical_host", check=False, name=HOST, state="drained", timeout=2)
    assert f"{HOST}: jobs still run there" in late["msg"]
    waits = clean.cluster.submit("true", host=HOST)
    clean.cluster.run(f"touch ~{PERSON}/leave")
    done = clean.module("logical_host", name=HOST, state="drained", timeout=120)
    assert done["changed"] is False and done["hosts"][0]["drained"] is True
    assert clean.cluster.task(waits).state == "pending", "nothing new starts on it"
    clean.cluster.cancel(waits)
    gone = clean.module("logical_host", name=HOST, state="absent", timeout=240)
    assert gone["changed"] is True and clean.host() is None


def test_a_new_leader_goes_on_where_the_one_before_was_killed(clean: ComposedSite) -> None:
    pools = clean.write_pools(**hosts(clean))
    clean.module("definition", path=str(pools), wait=False)
    pid_file = clean.cluster.leader.folder / "mbatchd.pid"
    first = int(pid_file.read_text().split()[0])
    os.kill(first, signal.SIGKILL)

    def composed_by_another() -> bool:
        # Between two schedulers there is no such file, and then nobody who answers yet.
        if not pid_file.exists() or int(pid_file.read_text().split()[0]) == first:
            return False
        try:
            return (clean.host() or {}).get("state") == "composed"
        except UnreachableError:
            return False

    until(composed_by_another, "another leader has composed it", 300)


SMALL: dict[str, Any] = {
    "cpu": 1,
    "memory": "96MiB",
    "storage": {"size": "64MiB", "pool": "flash", "circuit": "600Mbit/s"},
}
"""Of which there are CPUs for two, and links for one."""


def test_what_cannot_be_had_is_refused_with_its_reason_and_takes_nothing(clean: ComposedSite) -> None:
    site, cluster = clean, clean.cluster

    def reason(name: str) -> str:
        return until(lambda: (site.host(name) or {}).get("reason"), f"{name} says what it lacks")

    site.wish(**{HOST: SMALL})
    until(lambda: (site.host() or {}).get("state") == "composed", "it is composed", 300)
    before, made = site.traces(), site.host()
    assert made is not None

    # A second circuit over the link of which the first has most.
    site.wish(**{HOST: SMALL, "second": SMALL})
    full = r"storage for n1 would come over (link \S+|the network of n1), which has 400Mbit/s free of 600Mbit/s"
    assert re.search(full, reason("second"))

    # What is reserved for somebody is not there for anybody else, though nothing of it is used yet.
    free = site.offered(DISK, "storage") // MIB - 64
    thin = {
        "cpu": 0.5,
        "memory": "32MiB",
        "storage": {"size": f"{free - 8}MiB", "pool": "flash", "circuit": "100Mbit/s"},
    }
    site.wish(**{HOST: SMALL})
    until(lambda: site.host("second") is None, "it is not wished for any more")
    with cluster.client() as client:
        client.put_entry("hosts", "kept", EntryPut(spec=thin, reserve_seconds=600))
        try:
            until(lambda: (site.host("kept") or {}).get("state") == "reserved", "it is reserved")
            client.put_entry("hosts", "late", EntryPut(spec=thin))
            assert f"the nearest of other nodes of pool flash, {DISK}, lacks" in reason("late")
        finally:
            client.delete_entry("hosts", "late")
            client.delete_entry("hosts", "kept")

        # Storage of a pool to which no link leads.
        apart = [{"from": {"gives": "cpu"}, "to": "r1", "bandwidth": "1Gbit/s"}]
        slow = {**thin, "storage": {**SMALL["storage"], "circuit": "100Mbit/s"}}
        planned = client.plan(definition({HOST: SMALL, "far": slow}, links=apart)).hosts
        (found,) = [host for host in planned if host.name == "far"]
        assert "no node of pool flash that offers storage has a path to n1" in found.reason, found
    until(lambda: site.host("kept") is None and site.host("late") is None, "only the first is wished for")
    assert site.traces() == before, "none of that took anything"

    # Less than jobs hold of it.
    cluster.run(f"rm -f ~{PERSON}/leave")
    job = cluster.submit(f"until [ -e ~{PERSON}/leave ]; do sleep 0.5; done", host=HOST, memory_bytes=80 * MIB)
    cluster.running_task(job)
    before = site.traces()
    site.wish(**{HOST: {**SMALL, "memory": "64MiB"}})
    assert reason(HOST) == "jobs use more of it than it is to have"
    assert amounts(site.host() or {}) == amounts(made)

    # Nobody wishes for it any more, and somebody is on it: it goes once he has.
    site.wish()
    until(lambda: (site.host() or {}).get("state") == "draining", "it waits for its job")
    assert cluster.task(job).state == "running" and site.traces() == before
    cluster.run(f"touch ~{PERSON}/leave")
    assert cluster.end(job).state == "succeeded"
    cluster.run(f"rm ~{PERSON}/leave")
    until(lambda: site.host() is None, "then it goes", 300)


@pytest.mark.parametrize("on_loss", ["fail", "degrade"])
def test_far_memory_that_breaks_away(clean: ComposedSite, on_loss: str) -> None:
    clean.apply(**hosts(clean, on_loss=on_loss))
    clean.cluster.run("pkill -KILL -x nbdkit", MEMORY)

    def noticed() -> dict[str, Any] | None:
        host = clean.host()
        return host if host and (host["state"] != "composed" or host["degraded"]) else None

    host = until(noticed, "the loss is noticed")
    assert (host["state"] == "composed") == (on_loss == "degrade")
    assert "memory" in host["reason"] and MEMORY in host["reason"]
    lost = [part["id"] for part in host["parts"] if part["provider"] == MEMORY]
    assert host["degraded"] == (lost if on_loss == "degrade" else [])
