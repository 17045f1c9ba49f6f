"""The virtual IP on an interface, in a network namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from lab import why_not

pytestmark = pytest.mark.lab

# Two ends of one cable: what is announced on the first is heard on the second. All in a process of its own, which
# leaves this one's network alone.
SCRIPT = """
import asyncio, json, socket, subprocess, sys, time
from lavalite.base.clock import SystemClock
from lavalite.lim.config import VipConfig
from lavalite.lim.vip_link import LinkVip

clock, said = SystemClock(), {}
address = sys.argv[1]

def here():
    found = json.loads(subprocess.run(["ip", "-j", "addr", "show", "end0"], capture_output=True, check=True).stdout)
    plain = [each for each in found[0]["addr_info"] if each["local"] == address.split("/")[0]]
    return plain[0]["valid_life_time"] if plain else None

async def until(condition):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 20, said
        await asyncio.sleep(0.02)
    return time.monotonic() - began

async def main():
    heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    heard.bind(("end1", 0))
    vip = LinkVip(VipConfig(address=address, interface="end0"), clock)
    vip.hold(clock.boottime() + 4)
    await until(here)
    said["held"] = here()
    await asyncio.sleep(1)
    vip.hold(clock.boottime() + 4)
    await until(lambda: here() == said["held"])
    said["kernel_removed_after"] = await until(lambda: here() is None)
    vip.hold(clock.boottime() + 30)
    await until(here)
    vip.drop()
    said["dropped_after"] = await until(lambda: here() is None)
    vip.hold(clock.boottime() + 30)
    await until(here)
    await vip.close()
    said["closed"] = here()
    heard.setblocking(False)
    frames = []
    try:
        while True:
            frames.append(heard.recv(2000))
    except BlockingIOError:
        pass
    wanted = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address.split("/")[0])
    mine = [frame for frame in frames if wanted in frame[14:] and frame[6:12].hex(":") == MAC]
    said["announced"] = len([frame for frame in mine if frame[12:14] == b"\\x08\\x06" or frame[54:55] == b"\\x88"])
    # What is the interface's for good is not touched.
    own = LinkVip(VipConfig(address=OWN, interface="end0"), clock)
    own.hold(clock.boottime() + 4)
    await own.close()
    shown = subprocess.run(["ip", "addr", "show", "end0"], capture_output=True, text=True).stdout
    said["own"] = OWN.split("/")[0] in shown
    print(json.dumps(said))

run = lambda *words: subprocess.run(words, check=True)
run("ip", "link", "add", "name", "end0", "type", "veth", "peer", "name", "end1")
OWN = "198.18.0.1/24"
run("ip", "addr", "add", OWN, "dev", "end0")
for end in ("end0", "end1"):
    run("ip", "link", "set", end, "up")
MAC = json.loads(subprocess.run(["ip", "-j", "link", "show", "end0"], capture_output=True).stdout)[0]["address"]
asyncio.run(main())
"""


@pytest.mark.parametrize("address", ["198.18.0.200/24", "fd00::200/64"])
def test_it_lives_as_long_as_it_is_renewed_and_is_announced(address: str) -> None:
    assert not why_not()
    command = ["unshare", "--net", sys.executable, "-c", SCRIPT, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["held"] == 3 and said["closed"] is None and said["own"]
    assert said["kernel_removed_after"] < 3 + 1.5
    assert said["dropped_after"] < 2
    assert said["announced"] >= 3, "each time that it came"
    assert "own address" in done.stdout + done.stderr
