"""Parts of other nodes, on hosts of a lab of their own (tests/lab), as the leader, the agents and the kernel do it.

python bench/attach.py [--rounds 5] [--seconds 4] [--only compose|circuit|read]... [--json]

compose   a host with a disk of another node, from the wish at the API to `composed`: containers of this machine's
          kernel, which has no nbd, so that the disk comes by nbdfuse and a loop device
circuit   an export that is read through a circuit of 200 Mbit/s beside a flood from the same sender, and from a third
          one. Lines are of 1 Gbit/s: the senders' cards by the circuits' own HTB, and the consumer's port of the
          switch by a token bucket on the bridge (bench/attach_circuit.py)
read      a file on the disk as it is attached, by the kernel's nbd of a machine that QEMU emulates, and the same file
          on the same kernel by Debian's nbdkit and nbd-client with nothing of ours: by turns, nothing of it cached

All of them share this machine: ratios are of things that are done by turns, seconds and rates are this machine's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests"), str(ROOT / "tests/service")]

from attach_circuit import CIRCUIT_MBITS, LINE_MBITS, PLAIN_PORT, THIRD, circuit_figures  # noqa: E402
from composed_site import ANCHOR, DISK, NODES, STORAGE_PATH, ComposedSite, definition  # noqa: E402
from figures import Figure, at_least, at_most, not_measured, noted, report  # noqa: E402
from lab import Lab, why_no_kernel, why_not  # noqa: E402
from test_attach import MAKE_NODES  # noqa: E402

from lavalite.api.models import Host  # noqa: E402

PARTS = ("compose", "circuit", "read")
COMPOSE_SECONDS = 2.0
READ_PERCENT = 80
DISK_MIB, FILE_MIB = 512, 96
LINE = f"line_bits_per_second: {LINE_MBITS * 1_000_000}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Attached parts in a lab: composing, circuits, reading.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="how long each rate is measured")
    parser.add_argument("--only", choices=PARTS, action="append", help="and nothing else; may be repeated")
    parser.add_argument("--json", action="store_true", help="the last line is a list of the figures")
    asked = parser.parse_args()
    if reason := why_not():
        return not_measured(reason, asked.json)
    figures, wanted = list[Figure](), set(asked.only or PARTS)
    if wanted - {"read"}:
        with site([]) as made:
            if "compose" in wanted:
                figures += composed_figures(made, asked.rounds)
            if "circuit" in wanted:
                composed(made)
                figures += circuit_figures(made.lab, asked.rounds, asked.seconds)
    if "read" in wanted:
        if reason := why_no_kernel():
            print(f"reading is not measured: {reason}", file=sys.stderr)
        else:
            with site([ANCHOR]) as made:
                figures += read_figures(made, asked.rounds)
    return report(figures, as_json=asked.json)


@contextlib.contextmanager
def site(kernels: list[str]) -> Iterator[ComposedSite]:
    """Three workers as the roles deploy them, their leader, and a host that is none of them."""
    with tempfile.TemporaryDirectory(prefix="lava-") as folder, Lab([*NODES, THIRD], kernels=kernels) as lab:
        for node in {*NODES}.difference(kernels):
            lab.run(node, MAKE_NODES)
        with ComposedSite(Path(folder), lab, agent_settings=LINE).running() as made:
            yield made


# --- composing


def composed(site: ComposedSite) -> tuple[Host, float]:
    """A host with a disk of another node, and the seconds from the wish on."""
    disk = {"size": f"{DISK_MIB}MiB", "pool": "flash", "circuit": f"{CIRCUIT_MBITS}Mbit/s"}
    with site.cluster.client() as client:
        began = time.monotonic()
        client.put_definition(definition({"one": {"cpu": 1, "memory": "64MiB", "storage": disk}}))
        while (host := client.host("one")).state != "composed":
            assert host.state != "failed" and time.monotonic() < began + 600, f"{host.state}: {host.reason}"
            time.sleep(0.01)
        return host, time.monotonic() - began


def released(site: ComposedSite) -> float:
    """Seconds until nothing is left of it."""
    with site.cluster.client() as client:
        began = time.monotonic()
        client.put_definition(definition({}))
        while list(client.hosts()):
            assert time.monotonic() < began + 600, site.journals()
            time.sleep(0.01)
        return time.monotonic() - began


def composed_figures(site: ComposedSite, rounds: int, kind: str = "") -> list[Figure]:
    """The first is not counted: nothing is in any cache yet. `kind`: it is noted as that, beside no target."""
    composed(site), released(site)
    took, gone = [], []
    for _ in range(rounds):
        took.append(composed(site)[1])
        gone.append(released(site))
    words = f"{rounds} rounds, {min(took):.2f} to {max(took):.2f} s, load {os.getloadavg()[0]:.1f}"
    middle = statistics.median(took)
    figure = (
        noted(f"compose_{kind}_seconds", middle, "s", words)
        if kind
        else at_most("compose_seconds", middle, "s", COMPOSE_SECONDS, words)
    )
    return [figure, noted("_".join(filter(None, ("release", kind, "seconds"))), statistics.median(gone), "s")]


# --- reading


def read_figures(site: ComposedSite, rounds: int) -> list[Figure]:
    """The emulated anchor's, and its reading beside plain NBD's of the same file system."""
    figures = composed_figures(site, max(1, rounds // 2), "emulated")
    composed(site)
    lab = site.lab
    folder = lab.run(ANCHOR, "findmnt -rno TARGET -t ext4 | grep hosts-scratch").stdout.strip()
    device = lab.run(ANCHOR, f"findmnt -rno SOURCE {folder}").stdout.strip()
    assert device.startswith("/dev/nbd"), device
    # Frozen for a moment: what the journal holds is in its place then, where the other one finds it too.
    write = f"dd if=/dev/urandom of={folder}/bulk bs=1M count={FILE_MIB} conv=fsync 2>&1"
    lab.run(ANCHOR, f"{write} && fsfreeze -f {folder} && fsfreeze -u {folder}", timeout_seconds=600)
    address, export = lab.address(DISK), f"$(ls {STORAGE_PATH}/*)"
    serve = f"nbdkit --foreground -r --ipaddr {address} --port {PLAIN_PORT} file file={export}"
    lab.run(DISK, f"systemd-run --quiet --unit=plain {serve}")
    attach = f"nbd-client {address} {PLAIN_PORT} /dev/nbd9 -readonly 2>&1"
    lab.run(ANCHOR, f"{attach} && mkdir /mnt/plain && mount -o ro,noload /dev/nbd9 /mnt/plain", timeout_seconds=120)
    lab.run(ANCHOR, f"cmp {folder}/bulk /mnt/plain/bulk", timeout_seconds=300)
    ours, plain = [], []
    for _ in range(2 * rounds):
        ours.append(read_mib(lab, folder))
        plain.append(read_mib(lab, "/mnt/plain"))
    lab.run(ANCHOR, "umount /mnt/plain && nbd-client -d /dev/nbd9")
    of_ours, of_plain = statistics.median(ours), statistics.median(plain)
    words = f"{of_ours:.1f} of {of_plain:.1f} MiB/s, emulated, {2 * rounds} times each"
    return [*figures, at_least("read_percent_of_plain_nbd", 100 * of_ours / of_plain, "%", READ_PERCENT, words)]


def read_mib(lab: Lab, folder: str) -> float:
    """MiB a second of a file there, by the reader's own clock, with nothing of it in the cache of either machine."""
    lab.run(DISK, f"dd if=$(ls {STORAGE_PATH}/*) iflag=nocache count=0 2>&1")
    line = f"""
    sync; echo 3 > /proc/sys/vm/drop_caches
    cut -d' ' -f1 /proc/uptime; cat {folder}/bulk > /dev/null; cut -d' ' -f1 /proc/uptime
    """
    begin, end = map(float, lab.run(ANCHOR, line, timeout_seconds=300).stdout.split())
    return FILE_MIB / (end - begin)


if __name__ == "__main__":
    raise SystemExit(main())
