"""An image for virtual machines on a host: the disk and kernel of machines.py, and a small reader of NoCloud seeds.

It stands for a distribution's cloud image with cloud-init. That starts Python four times, which is a minute under
emulation; what is read here is the part of its documents that LavaLite writes.
"""

from __future__ import annotations

from pathlib import Path

from .image import machine_image
from .root import shared_root

CMDLINE = "console=ttyS0 loglevel=4 net.ifnames=0 mitigations=off systemd.getty_auto=no systemd.show_status=no"

READER = """\
#!/usr/bin/python3
import json, os, pathlib, subprocess, time

def run(*words, check=True):
    return subprocess.run(words, check=check, capture_output=True, text=True).stdout.strip()

deadline = time.monotonic() + 60
while not (disk := run("blkid", "-L", "cidata", check=False)) and time.monotonic() < deadline:
    time.sleep(0.2)
os.makedirs("/run/seed", exist_ok=True)
run("mount", "-o", "ro", disk, "/run/seed")
meta, user, network = (
    json.loads(pathlib.Path("/run/seed", name).read_text().removeprefix("#cloud-config"))
    for name in ("meta-data", "user-data", "network-config")
)
run("umount", "/run/seed")
for card in network["ethernets"].values():
    lines = ["[Match]", "MACAddress=" + card["match"]["macaddress"], "[Network]", "LinkLocalAddressing=no"]
    lines += ["Address=" + address for address in card["addresses"]]
    for route in card.get("routes", []):
        lines += ["[Route]", "Destination=" + route["to"], "Gateway=" + route["via"]]
    pathlib.Path("/etc/systemd/network/05-seed.network").write_text("\\n".join(lines) + "\\n")
for command in user["bootcmd"]:
    run(*command)
once = pathlib.Path("/var/lib/seeded")
if not once.exists() or once.read_text() != meta["instance-id"]:
    pathlib.Path("/etc/hostname").write_text(meta["local-hostname"] + "\\n")
    run("hostname", meta["local-hostname"])
    for file in user["write_files"]:
        path = pathlib.Path(file["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file["content"])
        path.chmod(int(file["permissions"], 8))
    (person,) = user["users"]
    keys = pathlib.Path("/root/.ssh/authorized_keys")
    keys.parent.mkdir(mode=0o700, exist_ok=True)
    keys.write_text("\\n".join(person["ssh_authorized_keys"]) + "\\n")
    if not os.path.exists("/etc/ssh/ssh_host_ed25519_key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/ssh_host_ed25519_key")
    for command in user["runcmd"]:
        run(*command)
    once.write_text(meta["instance-id"])
"""
UNIT = """\
[Unit]
Description=What the seed says
After=systemd-udevd.service
Wants=network-pre.target
Before=network-pre.target systemd-networkd.service ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/read-seed
StandardError=journal+console
"""


def lay_down_guest(images: Path, name: str) -> None:
    """The image NAME below a node's images_path. Raises LabError."""
    image, folder = machine_image(shared_root()), images / name
    folder.mkdir(parents=True)
    tree = folder / "tree"
    reader = tree / "usr/local/sbin/read-seed"
    unit = tree / "etc/systemd/system/read-seed.service"
    for file, text in ((reader, READER), (unit, UNIT)):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    reader.chmod(0o755)
    wants = unit.parent / "multi-user.target.wants"
    wants.mkdir()
    (wants / unit.name).symlink_to(f"../{unit.name}")
    image.first_steps(tree, folder / "initrd")
    (folder / "disk").symlink_to(image.disk)
    (folder / "kernel").symlink_to(image.kernel)
    (folder / "cmdline").write_text(CMDLINE)
