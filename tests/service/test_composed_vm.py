"""A logical host that is a virtual machine: CPU here, memory there, its disk elsewhere. Ansible reaches it by ssh.

All three workers are containers of this machine's kernel; QEMU emulates on the anchor.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from composed_site import ANCHOR, DISK, HOST, MEMORY, MIB, NODES, ComposedSite, settings
from deployed import until
from lab import Lab
from lab.guest import lay_down_guest

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(1200)]

IMAGES = "/var/lib/lavalite/images"
NETWORK, GATEWAY, ADDRESS = "198.18.1.0/24", "198.18.1.1", "198.18.1.10"
NEAR_MIB, FAR_MIB, DISK_MIB, GROWN_MIB = 384, 96, 64, 512
BRIDGE = f"""
set -e
ip link add vms type bridge
ip address add {GATEWAY}/24 dev vms
ip link set vms up
echo 1 > /proc/sys/net/ipv4/ip_forward
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposedSite]:
    folder = tmp_path_factory.mktemp("vm")
    with Lab(NODES) as lab:
        variables = {node: settings(lab, node) for node in NODES}
        variables[ANCHOR] |= {"sbatchd_vm_bridge": "vms", "sbatchd_images_path": IMAGES}
        lab.run(ANCHOR, BRIDGE)
        subprocess.run([*lab.inside(), "ip", "route", "add", NETWORK, "via", lab.address(ANCHOR)], check=True)
        lay_down_guest(folder / "links", "debian-12")
        images = folder / Path(IMAGES).name
        shutil.copytree(folder / "links" / "debian-12", images / "debian-12", ignore=shutil.ignore_patterns("tree"))
        lab.put(ANCHOR, images, str(Path(IMAGES).parent))
        made = ComposedSite(folder, lab, variables)
        reach_guests(made)
        with made.running():
            yield made


def of_node(site: ComposedSite) -> dict[str, str]:
    """What Ansible knows of a worker, to reach it."""
    known = json.loads((site.inventory / "hosts.json").read_text())
    found: dict[str, str] = known["all"]["children"]["lab"]["hosts"][ANCHOR]
    return found


def reach_guests(site: ComposedSite) -> None:
    """Ansible's ssh goes to them as it goes to the lab's hosts."""
    folder = site.inventory / "group_vars"
    folder.mkdir(exist_ok=True)
    same = {name: value for name, value in of_node(site).items() if name not in ("ansible_host", "ansible_user")}
    (folder / "lavalite_hosts.yml").write_text(yaml.safe_dump(same))


def hosts(site: ComposedSite, near: int = NEAR_MIB) -> dict[str, dict[str, Any]]:
    """The machine, and a larger host, so placed first, that leaves it GROWN_MIB of the anchor's memory."""
    left = site.offered(ANCHOR, "memory") // MIB - near
    key = Path(of_node(site)["ansible_ssh_private_key_file"] + ".pub").read_text().strip()
    return {
        "ballast": {"cpu": 1, "memory": f"{left}MiB"},
        HOST: {
            "cpu": 1,
            "memory": f"{near + FAR_MIB}MiB",
            "far": {"memory": f"{FAR_MIB}MiB", "circuit": "100Mbit/s"},
            "storage": {"size": f"{DISK_MIB}MiB", "pool": "flash", "circuit": "100Mbit/s"},
            "limits": {"memory": "1GiB"},
            "executor": "vm",
            "vm": {
                "image": "debian-12",
                "address": f"{ADDRESS}/24",
                "gateway": GATEWAY,
                "ssh_keys": [key],
            },
        },
    }


def test_a_machine_of_three_is_reached_by_ansible_and_grows_while_it_runs(site: ComposedSite) -> None:
    site.apply()
    before = site.traces(kernel=False)
    site.apply("-e", "seconds=600", **hosts(site))
    made = site.host()
    assert made is not None and (made["state"], made["executor"], made["address"]) == ("composed", "vm", ADDRESS)
    assert {part["kind"]: part["provider"] for part in made["parts"] if part["provider"] != ANCHOR} == {
        "memory": MEMORY,
        "storage": DISK,
    }
    known = site.hostvars()
    assert (known["ansible_host"], known["ansible_user"], known["lavalite_executor"]) == (ADDRESS, "root", "vm")
    assert "ansible_shell_executable" not in known

    assert site.on_host("hostname").strip() == HOST
    total, swap = (int(word) for word in site.on_host(r"awk '/MemTotal|SwapTotal/ {print $2}' /proc/meminfo").split())
    assert total // 1024 <= NEAR_MIB and FAR_MIB - 1 <= -(-swap // 1024) <= FAR_MIB
    mounted = site.on_host("df --output=target,size -m | grep /data").split()
    assert mounted[0].startswith("/data/") and DISK_MIB * 3 // 4 < int(mounted[1]) <= DISK_MIB
    site.on_host(f"echo kept > {mounted[0]}/note; sync")

    site.apply("-e", "seconds=300", **hosts(site, GROWN_MIB))
    until(lambda: int(site.on_host("awk '/MemTotal/ {print $2}' /proc/meminfo")) - total
          == (GROWN_MIB - NEAR_MIB) * 1024, "the memory is there")  # fmt: skip
    assert site.on_host(f"cat {mounted[0]}/note").strip() == "kept", "it ran on"

    site.apply("-e", "seconds=300")
    until(lambda: site.host() is None, "the host is gone")
    assert site.traces(kernel=False) == before, "what it took is given back, on all workers"
    assert site.lab.run(
        ANCHOR, "pgrep -c qemu; ls /var/lib/lavalite/sbatchd/vms | wc -l", check=False
    ).stdout.split() == [
        "0",
        "0",
    ]
    assert {MEMORY, DISK} < set(NODES)
