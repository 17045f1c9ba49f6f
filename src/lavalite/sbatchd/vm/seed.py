"""The guest's first instructions, as cloud-init's data source NoCloud takes them: a small disk labelled `cidata`.

The documents are JSON, which is YAML too. Beside network and keys they lay down what brings resources that come and
go into use: memory and CPUs at once, a disk as a file system below /data (made if the disk is blank), far memory as
swap. The node asks the guest by a serial port to let go of a disk before it is taken out.

https://cloudinit.readthedocs.io/en/22.4.2/topics/datasources/nocloud.html
"""

from __future__ import annotations

import io
import json
from pathlib import Path

from pycdlib import PyCdlib

from lavalite.sbatchd.vm.command import GUEST_PORT
from lavalite.sbatchd.vm.wanted import VmName, Wanted

LABEL = "cidata"
CARD = "eth0"
DATA = "/data"
"""In the guest, what holds a folder for each storage disk."""

# A disk that was named by the node: disk-NAME or swap-NAME. What is on it stays; only a blank one is made ready.
DISK = f"""\
#!/bin/sh
# lavalite-disk start|stop SERIAL: bring a disk of the logical host into use, or let go of it.
set -eu
device=/dev/disk/by-id/virtio-$2
folder={DATA}/${{2#disk-}}
blank() {{
    head -c 4096 "$device" > /dev/null
    found=0
    blkid -p "$device" > /dev/null 2>&1 || found=$?
    [ "$found" = 2 ]
}}
used() {{ awk -v it="$(readlink -f "$device")" '$1 == it {{ found = 1 }} END {{ exit !found }}' "$1"; }}
case "$1 $2" in
"start swap-"*)
    if blank; then mkswap "$device" > /dev/null; fi
    used /proc/swaps || swapon "$device" ;;
"start disk-"*)
    if blank; then mkfs.ext4 -q -m 0 "$device"; fi
    mkdir -p "$folder"
    used /proc/mounts || mount "$device" "$folder" ;;
"stop swap-"*)
    if used /proc/swaps; then swapoff "$device"; fi ;;
"stop disk-"*)
    if used /proc/mounts; then umount "$folder"; fi ;;
esac
"""
DISK_UNIT = """\
[Unit]
Description=Disk %i of the logical host
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/lavalite-disk start %i
"""
GUEST = f"""\
#!/bin/sh
# Answers the node, which asks for a disk before it takes it out: `let-go SERIAL`.
port=/dev/virtio-ports/{GUEST_PORT}
exec 3<> "$port"
while :; do
    # While the node does not listen there is an end to be read, at once.
    read -r verb serial <&3 || {{ sleep 1; continue; }}
    [ "$verb" = let-go ] || continue
    if why=$(/usr/local/sbin/lavalite-disk stop "$serial" 2>&1); then
        echo "gone $serial" >&3
    else
        echo "kept $serial $(echo "$why" | tail -n 1)" >&3
    fi
done
"""
GUEST_UNIT = f"""\
[Unit]
Description=What the node asks of this logical host
ConditionPathExists=/dev/virtio-ports/{GUEST_PORT}
[Service]
ExecStart=/usr/local/sbin/lavalite-guest
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
"""
RULES = """\
SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", ATTR{serial}=="disk-?*|swap-?*", TAG+="systemd", \\
  ENV{SYSTEMD_WANTS}+="lavalite-disk@$attr{serial}.service"
SUBSYSTEM=="memory", ACTION=="add", ATTR{state}=="offline", ATTR{state}="online"
SUBSYSTEM=="cpu", ACTION=="add", TEST=="online", ATTR{online}=="0", ATTR{online}="1"
"""
# At each boot: memory comes online as it arrives, most of it so that it can leave again.
MEMORY = """\
if [ -e /sys/module/memory_hotplug/parameters/online_policy ]; then \
echo auto-movable > /sys/module/memory_hotplug/parameters/online_policy; fi; \
if [ -e /sys/devices/system/memory/auto_online_blocks ]; then \
echo online > /sys/devices/system/memory/auto_online_blocks; fi"""
RUN = (
    ("systemctl", "daemon-reload"),
    ("systemctl", "enable", "--now", "--no-block", "lavalite-guest.service"),
    ("udevadm", "control", "--reload"),
    (
        "udevadm",
        "trigger",
        "--action=add",
        "--subsystem-match=memory",
        "--subsystem-match=cpu",
        "--subsystem-match=block",
    ),
)


def documents(name: VmName, wanted: Wanted) -> dict[str, str]:
    """File names and texts. `instance-id` is of the incarnation: a later host of the name is set up anew."""
    return {
        "meta-data": _json({"instance-id": str(name), "local-hostname": hostname(name)}),
        "user-data": "#cloud-config\n" + _json(_user(wanted)),
        "network-config": _json(_network(name, wanted)),
    }


def hostname(name: VmName) -> str:
    """The host's name, as far as it can be one of a machine."""
    return name.host.replace("_", "-").rstrip("-.")


def _user(wanted: Wanted) -> dict[str, object]:
    def file(path: str, text: str, mode: str = "0644") -> dict[str, str]:
        return {"path": path, "permissions": mode, "content": text}

    return {
        "disable_root": False,
        "ssh_pwauth": False,
        "users": [{"name": "root", "lock_passwd": True, "ssh_authorized_keys": wanted.ssh_keys}],
        "bootcmd": [["sh", "-c", MEMORY]],
        "write_files": [
            file("/usr/local/sbin/lavalite-disk", DISK, "0755"),
            file("/usr/local/sbin/lavalite-guest", GUEST, "0755"),
            file("/etc/systemd/system/lavalite-disk@.service", DISK_UNIT),
            file("/etc/systemd/system/lavalite-guest.service", GUEST_UNIT),
            file("/etc/udev/rules.d/90-lavalite.rules", RULES),
        ],
        "runcmd": [list(words) for words in RUN],
    }


def _network(name: VmName, wanted: Wanted) -> dict[str, object]:
    # Named outright: what cloud-init writes for ifupdown and networkd goes by the name, for netplan by the address.
    card: dict[str, object] = {
        "match": {"macaddress": name.mac},
        "set-name": CARD,
        "addresses": [wanted.network_address],
    }
    if wanted.gateway and wanted.interface.version == 4:
        card["routes"] = [{"to": "0.0.0.0/0", "via": wanted.gateway}]
    elif wanted.gateway:
        card["gateway6"] = wanted.gateway  # cloud-init 22.4 makes ::/64 of a route to ::/0
    return {"version": 2, "ethernets": {CARD: card}}


def write_seed(target: Path, texts: dict[str, str]) -> None:
    """As an ISO 9660 image with Rock Ridge names. Raises OSError."""
    image = PyCdlib()
    image.new(vol_ident=LABEL, rock_ridge="1.09", joliet=3)
    for number, (name, text) in enumerate(sorted(texts.items())):
        content = text.encode()
        image.add_fp(io.BytesIO(content), len(content), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    fresh = target.with_name(f".{target.name}.new")
    try:
        image.write(str(fresh))
    finally:
        image.close()
    fresh.chmod(0o600)
    fresh.replace(target)


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"
