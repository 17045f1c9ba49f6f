"""Parts of other nodes, for real: exports, disks, circuits and far memory between hosts of the lab.

On each host runs what sbatchd runs, confined as its unit is (attach_on_host.py), and the test is the leader. Hosts
that share this machine's kernel have no nbd, so that disks come by nbdfuse and a loop device; the one with a kernel
of its own has nbd, swap and limits.
"""

from __future__ import annotations

import json
import queue
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployed import until
from lab import Lab, ssh, state
from role_templates import render
from test_systemd import PACKAGES, gather

from lavalite.sbatchd.attach.roles import Key

import test_systemd  # isort: skip

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
STATE = "/var/lib/lavalite/sbatchd"
MIB = 1024 * 1024
MAKE_NODES = """
test -e /dev/fuse || mknod -m 666 /dev/fuse c 10 229
test -e /dev/loop-control || mknod /dev/loop-control c 10 237
for number in $(seq 0 63); do test -e /dev/loop$number || mknod /dev/loop$number b 7 $number; done
"""
"""As udev does on a machine of metal."""
LOOK = f"""
echo processes $(pgrep -c 'nbd(kit|fuse)')
echo loops $(grep -ls {STATE} /sys/block/loop*/loop/backing_file | wc -l)
echo nbd $(ls -d /sys/block/nbd*/pid 2> /dev/null | wc -l)
echo mounts $(grep -c {STATE} /proc/self/mountinfo)
echo swaps $(grep -c nbd /proc/swaps)
echo mapped $(ls /dev/mapper 2> /dev/null | grep -c lavalite)
echo folders $(find {STATE} -type d | wc -l)
echo classes $(tc class show dev host0 | wc -l)
echo qdisc $(tc qdisc show dev host0 | cut -d' ' -f2)
echo rules $(nft list ruleset | wc -l)
echo units $(systemctl list-units --all --no-legend 'lavalite-part*' | wc -l)
echo files $(find {STATE} -type f | wc -l)
"""


def confinement() -> list[str]:
    """What the role's unit lays on sbatchd, as options of systemd-run."""
    unit = render("sbatchd", "lavalite-sbatchd.service", sbatchd_executor="systemd", sbatchd_state_path=STATE)
    lines = unit.partition("# Attempts are units")[2].partition("[Install]")[0].splitlines()
    return [f"--property={line}" for line in lines if re.match(r"[A-Z]\w+=", line)]


class Node:
    """What sbatchd has of parts on one host, and the test as its leader."""

    def __init__(self, lab: Lab, name: str, *, check_seconds: float = 0.5) -> None:
        self.lab, self.name, self.address = lab, name, lab.address(name)
        self._check_seconds = check_seconds
        self._orders: dict[tuple[str, str], dict[str, Any]] = {}
        self._pictures: queue.Queue[list[dict[str, Any]]] = queue.Queue()
        self.picture: list[dict[str, Any]] = []
        self.begin()

    def begin(self) -> None:
        run = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--unit=attacher",
               "--setenv=PYTHONPATH=/opt/bench/site", *confinement(),
               "python3", "/opt/bench/attach_on_host.py", STATE, self.address, str(self._check_seconds)]  # fmt: skip
        target = state.load(self.lab.name).host(self.name)
        command = ssh.command(self.lab.name, target, shlex.join(run))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        self._picture_with({})

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            self._pictures.put(json.loads(line))

    def kill(self) -> None:
        """As `kill -9` of sbatchd."""
        self.run("systemctl kill --signal=KILL attacher")
        self._process.wait(30)

    def end(self) -> None:
        if self._process.poll() is None:
            assert self._process.stdin
            self._process.stdin.close()
            self._process.wait(30)

    def order(self, *orders: dict[str, Any]) -> None:
        """In addition to what was ordered before."""
        self._orders |= {(each["part"], each["role"]): each for each in orders}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(list(self._orders.values())) + "\n")
        self._process.stdin.flush()

    def dismiss(self, seconds: float = 30.0) -> None:
        """All of it is ordered away, and is gone."""
        self.order(*({**each, "want": "absent"} for each in self._orders.values()))
        self.wait(dict.fromkeys(self._orders, "gone"), seconds)

    def wait(
        self, states: dict[tuple[str, str], str], seconds: float = 30.0
    ) -> dict[tuple[str, str], dict[str, Any]]:
        """The parts by name and role, once they are in these states. Raises AssertionError."""
        return self._picture_with(states, seconds)

    def _picture_with(self, states: dict[tuple[str, str], str], seconds: float = 30.0) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            parts = {(each["part"], each["role"]): each for each in self.picture}
            if states and all(parts.get(key, {}).get("state") == state for key, state in states.items()):
                return parts
            try:
                self.picture = self._pictures.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{self.name}: not {states} but {self.picture}") from None
            if not states:
                return parts

    def run(self, line: str, *, check: bool = True, seconds: float = 60) -> str:
        return self.lab.run(self.name, line, check=check, timeout_seconds=seconds).stdout

    def look(self) -> str:
        return self.run(LOOK)


def order(part: str, role: str, peer: Node | None = None, **more: Any) -> dict[str, Any]:
    fields = {"part": part, "role": role, "host": "roomy", "incarnation": 7, "kind": "storage", "amount": 64 * MIB}
    if peer is not None:
        fields |= {"peer": peer.name, "peer_address": peer.address}
    return fields | more


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gathered") / "bench"
    test_systemd.PACKAGES = (*PACKAGES, "pyroute2")
    gather(folder)
    for name in ("attach_on_host.py",):
        (folder / name).write_bytes((HERE / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def hosts(bench: Path) -> Iterator[Lab]:
    with Lab(["giver", "taker", "other"]) as lab:
        for name in ("giver", "taker", "other"):
            lab.put(name, bench, "/opt")
            lab.run(name, f"{MAKE_NODES} mkdir -p {STATE}/storage {STATE}/parts && chmod 711 {STATE}")
        yield lab


@pytest.fixture
def nodes(hosts: Lab) -> Iterator[tuple[Node, Node]]:
    giver, taker = Node(hosts, "giver"), Node(hosts, "taker")
    before = giver.look(), taker.look()
    yield giver, taker
    for node in (taker, giver):
        node.dismiss()
    assert (giver.look(), taker.look()) == before, "something was left behind"
    for node in (giver, taker):
        node.end()


def attach(giver: Node, taker: Node, **more: Any) -> dict[str, Any]:
    """A disk of the taker from the giver, in a circuit; the taker's part as it is told."""
    circuit = {"kind": "network", "amount": 200_000_000}
    giver.order(order("roomy/c", "circuit", taker, **circuit), order("roomy/s", "export", taker, **more))
    export = giver.wait({("roomy/s", "export"): "ready", ("roomy/c", "circuit"): "ready"})["roomy/s", "export"]
    where = {key: export[key] for key in ("address", "port", "secret")}
    taker.order(order("roomy/c", "circuit", giver, **circuit), order("roomy/s", "disk", giver, **where, **more))
    disk: dict[str, Any] = taker.wait({("roomy/s", "disk"): "ready"})["roomy/s", "disk"]
    return disk


def may_connect(lab: Lab, host: str, node: Node, port: int) -> bool:
    line = f"timeout 2 python3 -c 'import socket; socket.create_connection((\"{node.address}\", {port}))'"
    return lab.run(host, line, check=False).returncode == 0


def test_a_disk_of_another_node(nodes: tuple[Node, Node], hosts: Lab) -> None:
    giver, taker = nodes
    disk = attach(giver, taker)
    path, port = disk["path"], giver.wait({("roomy/s", "export"): "ready"})["roomy/s", "export"]["port"]
    # Its consumer alone.
    assert may_connect(hosts, "taker", giver, port)
    assert not may_connect(hosts, "other", giver, port) and not may_connect(hosts, "giver", giver, port)
    # Anybody on the host may write there, and what is written is in the giver's file.
    taker.run(
        f"setpriv --reuid=65534 --regid=65534 --clear-groups sh -c 'echo found-again > {path}/note' && sync -f {path}"
    )
    assert giver.run(f"grep -c found-again {STATE}/storage/*").strip() == "1"
    mode = giver.run(f"stat -c %a {STATE}/storage/*; stat -c %a {STATE}/parts/*.json").split()
    assert set(mode) == {"600"}
    # What goes out of it goes through its circuit.
    assert "meta priority set 1a17:10" in giver.run("nft list table inet lavalite_parts")
    taker.run(f"dd if=/dev/urandom of={path}/bulk bs=1M count=8 conv=fsync 2>&1")
    sent = [
        int(each) for each in re.findall(r"class htb 1a17:10.*\n Sent (\d+)", taker.run("tc -s class show dev host0"))
    ]
    assert sent and sent[0] > 8 * MIB


def test_it_is_the_same_after_a_kill_of_sbatchd(nodes: tuple[Node, Node]) -> None:
    giver, taker = nodes
    disk = attach(giver, taker)
    taker.run(f"echo kept > {disk['path']}/note")
    for node in nodes:
        node.kill()
    before = giver.look(), taker.look()
    for node in nodes:
        node.begin()
        node.order()
    giver.wait({("roomy/s", "export"): "ready", ("roomy/c", "circuit"): "ready"})
    taker.wait({("roomy/s", "disk"): "ready"})
    assert taker.run(f"cat {disk['path']}/note") == "kept\n"
    assert (giver.look(), taker.look()) == before


def test_killed_in_the_middle_of_the_work_nothing_leaks(nodes: tuple[Node, Node]) -> None:
    giver, taker = nodes
    giver.order(order("roomy/s", "export", taker))
    giver.kill()
    giver.begin()
    giver.order()
    export = giver.wait({("roomy/s", "export"): "ready"})["roomy/s", "export"]
    ask = order("roomy/s", "disk", giver, address=export["address"], port=export["port"])
    slug = Key(ask["part"], ask["role"], ask["incarnation"]).slug
    # The part's lock is held, so that the work lasts until sbatchd is dead.
    taker.run(f"systemd-run --quiet --unit=holder flock {STATE}/parts/{slug}.lock sleep infinity")
    until(lambda: taker.run(f"flock -n {STATE}/parts/{slug}.lock true || echo held"), "the lock is held")
    taker.order(ask)
    until(lambda: taker.run(f"ls {STATE}/parts/{slug}.request", check=False), "it is at work")
    taker.kill()
    taker.begin()
    taker.run("systemctl stop holder")
    taker.order()
    taker.wait({("roomy/s", "disk"): "ready"})


def test_an_export_that_is_killed_comes_again_and_what_hung_on_it_is_told_as_lost(nodes: tuple[Node, Node]) -> None:
    giver, taker = nodes
    disk = attach(giver, taker)
    taker.run(f"echo kept > {disk['path']}/note && sync -f {disk['path']}")
    first = giver.run("pgrep nbdkit")
    giver.run("pkill -KILL nbdkit")
    until(lambda: giver.run("pgrep nbdkit", check=False) not in ("", first), "nbdkit is there again", 30)
    parts = taker.wait({("roomy/s", "disk"): "lost"}, 60)
    assert "broke" in parts["roomy/s", "disk"]["reason"] or "read-only" in parts["roomy/s", "disk"]["reason"]
    assert giver.wait({("roomy/s", "export"): "ready"})
    assert giver.run(f"grep -c kept {STATE}/storage/*").strip() == "1", "and its bytes are there still"


def test_an_encrypted_export_is_opened_by_its_secret_alone(nodes: tuple[Node, Node]) -> None:
    giver, taker = nodes
    giver.order(order("roomy/s", "export", taker, tls=True))
    export = giver.wait({("roomy/s", "export"): "ready"})["roomy/s", "export"]
    assert re.fullmatch("[0-9a-f]{64}", export["secret"])
    assert export["secret"] not in giver.run("ps -ww -eo args; journalctl --no-pager -o cat")
    where = f"{giver.address}:{export['port']}"
    taker.run(f"install -m 600 /dev/null /run/psk && echo lavalite:{export['secret']} > /run/psk")
    uri = f"nbds://lavalite@{where}/?tls-psk-file=/run/psk"
    assert taker.run(f"nbdinfo --size '{uri}'; rm /run/psk").strip() == str(64 * MIB)
    assert "TLS" in taker.run(f"nbdinfo --size nbd://{where}/ 2>&1", check=False)
    taker.order(order("roomy/s", "disk", giver, address=giver.address, port=export["port"], tls=True))
    assert "VM" in taker.wait({("roomy/s", "disk"): "failed"})["roomy/s", "disk"]["reason"]


def test_a_disk_that_is_in_use_stays_and_says_by_whom(nodes: tuple[Node, Node]) -> None:
    _, taker = nodes
    taker.order(order("roomy/l", "disk"))
    path = taker.wait({("roomy/l", "disk"): "ready"})["roomy/l", "disk"]["path"]
    taker.run(f"systemd-run --quiet --unit=sitter sh -c 'exec sleep 600 > {path}/open'")
    until(lambda: taker.run(f"ls {path}/open", check=False), "it is in use", 20)
    taker.order(order("roomy/l", "disk", version=2, want="absent"))
    parts = taker.wait({("roomy/l", "disk"): "failed"})
    taker.run("systemctl stop sitter")
    assert "(sleep)" in parts["roomy/l", "disk"]["reason"]
    taker.wait({("roomy/l", "disk"): "gone"})


def test_memory_that_is_killed_is_lost_and_swap_needs_nbd(nodes: tuple[Node, Node]) -> None:
    giver, taker = nodes
    giver.order(order("roomy/m", "export", taker, kind="memory"))
    export = giver.wait({("roomy/m", "export"): "ready"})["roomy/m", "export"]
    taker.order(order("roomy/m", "swap", giver, kind="memory", address=export["address"], port=export["port"]))
    if not taker.run("ls -d /sys/module/nbd", check=False):
        parts = taker.wait({("roomy/m", "swap"): "failed"})
        assert "has no nbd" in parts["roomy/m", "swap"]["reason"]
    giver.run("pkill -KILL nbdkit")
    parts = giver.wait({("roomy/m", "export"): "lost"}, 60)
    assert "with it the memory" in parts["roomy/m", "export"]["reason"]


# --- a host with a kernel of its own

FAR, NEAR = 96 * MIB, 40 * MIB
USE = """
import mmap, sys
size = int(sys.argv[1])
memory = mmap.mmap(-1, size)
for at in range(0, size, 4096):
    memory[at] = at // 4096 % 251
print(all(memory[at] == at // 4096 % 251 for at in range(0, size, 4096)))
"""


@pytest.fixture(scope="module")
def machines(bench: Path) -> Iterator[tuple[Node, Node, Node]]:
    """Two that give, and one with a kernel of its own that takes."""
    names = ("giver", "second", "taker")
    with Lab(names, kernels=["taker"]) as lab:
        for name in names:
            lab.put(name, bench, "/opt")
            lab.run(name, f"mkdir -p {STATE}/storage {STATE}/parts && chmod 711 {STATE}")
        nodes = Node(lab, "giver"), Node(lab, "second"), Node(lab, "taker", check_seconds=3)
        yield nodes
        for node in nodes:
            node.end()


@pytest.fixture
def machine(machines: tuple[Node, Node, Node]) -> Iterator[tuple[Node, Node, Node]]:
    before = [node.look() for node in machines]
    yield machines
    for node in reversed(machines):
        node.dismiss(180)
    assert [node.look() for node in machines] == before, "something was left behind"
    assert machines[-1].run("tail -n +2 /proc/swaps") == ""


@pytest.mark.lab(kernel=True)
def test_far_memory_and_the_kernels_own_nbd(machine: tuple[Node, Node, Node]) -> None:
    giver, _, taker = machine
    giver.order(order("roomy/m", "export", taker, kind="memory", amount=FAR), order("roomy/s", "export", taker))
    parts = giver.wait({("roomy/m", "export"): "ready", ("roomy/s", "export"): "ready"})
    memory, storage = ({key: parts[part, "export"][key] for key in ("address", "port")} for part in
                       ("roomy/m", "roomy/s"))  # fmt: skip
    taker.order(
        order("roomy/m", "swap", giver, kind="memory", amount=FAR, **memory),
        order("roomy/s", "disk", giver, **storage),
    )
    parts = taker.wait({("roomy/m", "swap"): "ready", ("roomy/s", "disk"): "ready"}, 180)
    assert parts["roomy/m", "swap"]["device"].startswith("/dev/nbd")
    path = parts["roomy/s", "disk"]["path"]

    # More than it has near: it runs on the giver's memory, and without that it would be killed.
    limits = f"--quiet --wait --pipe -p MemoryMax={NEAR}"
    use = f"python3 -c {shlex.quote(USE)} {2 * NEAR}"
    far = f"systemd-run {limits} -p MemorySwapMax={FAR} {use}"
    assert taker.run(far, seconds=180).strip() == "True"
    assert "True" not in taker.run(f"systemd-run {limits} -p MemorySwapMax=0 {use}", check=False, seconds=180)

    # A disk of this node grows while it is used. (Elsewhere this machine may not let its hosts resize anything.)
    taker.order(order("roomy/l", "disk"))
    grown = taker.wait({("roomy/l", "disk"): "ready"}, 90)["roomy/l", "disk"]["path"]
    small = int(taker.run(f"stat -f -c %b {grown}"))
    taker.order(order("roomy/l", "disk", version=2, amount=128 * MIB))
    until(lambda: int(taker.run(f"stat -f -c %b {grown}")) > 1.8 * small, "the file system has grown", 90)

    # A second host finds swap taken.
    taker.order(order("second/m", "swap", giver, host="second", kind="memory", **memory))
    assert "roomy" in taker.wait({("second/m", "swap"): "failed"})["second/m", "swap"]["reason"]

    # The export is killed while it is written to: the writer waits for it, and nothing is lost.
    write = f"dd if=/dev/urandom of={path}/bulk bs=1M count=8 conv=fsync"
    taker.run(f"systemd-run --quiet --unit=writer --remain-after-exit sh -c '{write} && sha1sum {path}/bulk'")
    giver.run("kill -KILL $(pgrep -f 'nbdki[t].* file ')")
    until(lambda: "exited" in taker.run("systemctl show -P SubState writer"), "it has been written", 120)
    assert taker.run("systemctl show -P Result writer").strip() == "success"
    assert {each["state"] for each in taker.picture if each["role"] == "disk"} == {"ready"}

    # The giver comes back without the disk, which it makes anew at the same port: nobody is connected to that.
    giver.kill()
    giver.run(f"systemctl stop 'lavalite-part-export-roomy_s*'; rm {STATE}/parts/export-roomy_s* {STATE}/storage/*")
    giver.begin()
    giver.order()
    giver.wait({("roomy/m", "export"): "ready", ("roomy/s", "export"): "ready"})
    lost = taker.wait({("roomy/s", "disk"): "lost", ("roomy/m", "swap"): "ready"}, 180)["roomy/s", "disk"]
    assert "another thing than was attached" in lost["reason"] or "read-only" in lost["reason"]
    taker.run("systemctl stop writer")


WRITER = """
import hashlib, os, pathlib, sys
path, sums, number = sys.argv[1], {}, 0
while not os.path.exists("/run/enough"):
    name, data = f"{path}/f{number % 64}", os.urandom(65536)
    with open(name, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sums[name] = hashlib.sha1(data).hexdigest()
    number += 1
    pathlib.Path("/run/written").write_text(str(number))
pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
read = {name: hashlib.sha1(pathlib.Path(name).read_bytes()).hexdigest() for name in sums}
sys.exit(0 if number > 64 and read == sums else f"of {number} files {sum(read[n] != sums[n] for n in sums)} differ")
"""


class Writer:
    """Writes files to a folder, again and again, and in the end reads what it wrote last."""

    def __init__(self, node: Node, path: str) -> None:
        self._node = node
        node.run(f"rm -f /run/enough; printf %s {shlex.quote(WRITER)} > /run/writer.py")
        node.run(f"systemd-run --quiet --unit=writer --remain-after-exit python3 /run/writer.py {path}")

    def count(self) -> int:
        return int(self._node.run("cat /run/written", check=False) or 0)

    def goes_on(self, seconds: float = 90) -> None:
        before = self.count()
        until(lambda: self.count() > before + 3, "it writes", seconds)

    def end(self) -> None:
        self._node.run("touch /run/enough")
        until(lambda: "exited" in self._node.run("systemctl show -P SubState writer"), "it has read it all", 180)
        said = self._node.run(
            "systemctl show -P Result writer; journalctl -qn5 -o cat -u writer; systemctl stop writer"
        )
        assert said.startswith("success"), said


def export_of(node: Node, part: str, taker: Node, **more: Any) -> dict[str, Any]:
    """Where a part is exported."""
    node.order(order(part, "export", taker, **more))
    export = node.wait({(part, "export"): "ready"})[part, "export"]
    return {key: export[key] for key in ("address", "port")}


@pytest.mark.lab(kernel=True)
def test_a_disk_moves_from_node_to_node_and_home_while_it_is_written_to(machine: tuple[Node, Node, Node]) -> None:
    giver, second, taker = machine
    taker.order(order("roomy/s", "disk", giver, **export_of(giver, "roomy/s", taker)))
    disk = taker.wait({("roomy/s", "disk"): "ready"}, 180)["roomy/s", "disk"]
    assert disk["device"].startswith("/dev/mapper/lavalite-disk-roomy_s-")
    writer = Writer(taker, disk["path"])
    writer.goes_on()

    # To another node. Both have it then, and the first goes.
    taker.order(order("roomy/t", "disk", second, mirrors="roomy/s", **export_of(second, "roomy/t", taker)))
    copy = taker.wait({("roomy/t", "disk"): "ready"}, 240)["roomy/t", "disk"]
    assert (copy["device"], copy["path"]) == (disk["device"], disk["path"])
    assert " mirror 2 " in taker.run("dmsetup status")
    writer.goes_on()
    taker.order(order("roomy/s", "disk", version=2, want="absent"))
    taker.wait({("roomy/s", "disk"): "gone"}, 90)
    giver.order(order("roomy/s", "export", version=2, want="absent"))
    giver.wait({("roomy/s", "export"): "gone"})
    writer.goes_on()

    # Home, and larger; sbatchd is killed while it is copied.
    taker.order(order("roomy/l", "disk", mirrors="roomy/t", amount=96 * MIB))
    until(lambda: " mirror 2 " in taker.run("dmsetup status"), "it is being copied", 90)
    taker.kill()
    taker.begin()
    taker.order()
    taker.wait({("roomy/l", "disk"): "ready", ("roomy/t", "disk"): "ready"}, 240)
    small = int(taker.run(f"stat -f -c %b {disk['path']}"))
    taker.order(order("roomy/t", "disk", version=2, want="absent"))
    taker.wait({("roomy/t", "disk"): "gone"}, 90)
    taker.order(order("roomy/l", "disk", version=2, amount=96 * MIB))
    until(lambda: int(taker.run(f"stat -f -c %b {disk['path']}")) > 1.3 * small, "the file system has grown", 120)
    second.order(order("roomy/t", "export", version=2, want="absent"))
    second.wait({("roomy/t", "export"): "gone"})
    writer.goes_on()

    # A copy of which the provider dies is none, and is taken away; the disk goes on.
    where = export_of(giver, "roomy/u", taker, amount=96 * MIB)
    taker.order(order("roomy/u", "disk", giver, mirrors="roomy/l", amount=96 * MIB, **where))
    taker.wait({("roomy/u", "disk"): "ready"}, 240)
    giver.order(order("roomy/u", "export", version=2, want="absent"))
    taker.wait({("roomy/u", "disk"): "lost", ("roomy/l", "disk"): "ready"}, 240)
    writer.goes_on(180)
    taker.order(order("roomy/u", "disk", version=2, want="absent"))
    taker.wait({("roomy/u", "disk"): "gone"}, 90)
    assert taker.run("dmsetup table | grep -c linear").strip() == "1"
    writer.end()
