"""What hosts with a kernel of their own boot from: a kernel, its first steps and a disk, built once and kept.

The disk holds the same root as the other hosts share, with the kernel's modules. The kernel is Debian's; its package
is unpacked and not installed, so that this machine's own /boot stays as it is. Instead of Debian's initramfs there
are a few lines of shell: under emulation each thing that is not done at boot is felt.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .needs import LabError
from .root import cache_folder, locked

KERNEL = "linux-image-cloud-amd64"
SHELL = "busybox-static"
FIRST_MODULES = ("virtio_pci", "virtio_blk")
"""Without these the kernel sees no disk; udev loads all others from there."""
DISK_BYTES = 4 * 1024**3
"""Sparse: about 500 MB of it are used."""
LINK = "[Match]\nDriver=virtio_net\n[Link]\nName=host0\n"
"""The cable has the same name as in a container."""
OFF = ("e2scrub_reap.service", "systemd-binfmt.service")
"""Slow under emulation, and of no use here."""

INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod "/modules/$module"; done
tries=100
until /bin/busybox mount -t ext4 /dev/vda /root; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { echo "lab: there is no disk"; /bin/busybox poweroff -f; }
    /bin/busybox sleep 0.1
done
[ -s /root/etc/machine-id ] || /bin/busybox cp -a /host/. /root/
/bin/busybox umount /dev
exec /bin/busybox switch_root /root /sbin/init
"""

# Where the root lies under the modules and nothing can be written to it.
LAY_OVER = """
set -e
mkdir "$WORK/over" "$WORK/merged"
mount -t overlay -o "lowerdir=$ROOT,upperdir=$WORK/layer,workdir=$WORK/over" overlay "$WORK/merged"
chroot "$WORK/merged" depmod "$VERSION"
truncate -s "$BYTES" "$WORK/disk"
mke2fs -q -F -t ext4 -L lab -m 0 -E assume_storage_prezeroed=1 -d "$WORK/merged" "$WORK/disk"
"""
PACK = 'cd "$FOLDER" && find . | sort | "$BUSYBOX" cpio -o -H newc 2>/dev/null > "$TARGET"'
RECIPE = 1
"""Raise it when what is built here changes otherwise than by the texts above."""


@dataclass(frozen=True, slots=True)
class Image:
    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "kernel"

    @property
    def disk(self) -> Path:
        """To be copied, not written to."""
        return self.folder / "disk"

    def first_steps(self, host: Path, target: Path) -> None:
        """Write an initramfs that copies the files below `host` onto a disk that has no identity yet."""
        within = target.with_name("initramfs")
        (within / "host").parent.mkdir()
        shutil.copytree(host, within / "host", symlinks=True)
        _pack(within, target, self.folder / "busybox")
        shutil.rmtree(within)
        target.write_bytes((self.folder / "initramfs").read_bytes() + target.read_bytes())


def machine_image(root: Path) -> Image:
    """The image for `root`, built if there is none yet: about 30 s, 600 MB. Raises LabError."""
    recipe = (RECIPE, root.name, KERNEL, SHELL, FIRST_MODULES, DISK_BYTES, LINK, OFF, INIT, LAY_OVER)
    digest = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
    cache = cache_folder()
    image = Image(cache / f"image-{digest}")
    if not image.folder.is_dir():
        with locked(cache / "image.lock"):
            if not image.folder.is_dir():
                for left_over in cache.glob("imaging-*"):
                    shutil.rmtree(left_over)
                unfinished = cache / f"imaging-{digest}"
                unfinished.mkdir()
                _build(unfinished, root)
                unfinished.rename(image.folder)
    return image


def _build(folder: Path, root: Path) -> None:
    work = folder / "work"
    work.mkdir()
    unpacked = _fetch(work)
    version = next((unpacked / "lib/modules").iterdir()).name
    shutil.copyfile(unpacked / f"boot/vmlinuz-{version}", folder / "kernel")
    shutil.copy(unpacked / "bin/busybox", folder / "busybox")
    modules = work / "layer/usr/lib/modules" / version
    modules.parent.mkdir(parents=True)
    (unpacked / "lib/modules" / version).rename(modules)
    link = work / "layer/etc/systemd/network/10-lab.link"
    link.parent.mkdir(parents=True)
    link.write_text(LINK)
    for unit in OFF:
        masked = work / "layer/etc/systemd/system" / unit
        masked.parent.mkdir(parents=True, exist_ok=True)
        masked.symlink_to("/dev/null")
    values = {"ROOT": str(root), "WORK": str(work), "VERSION": version, "BYTES": str(DISK_BYTES)}
    _run(["unshare", "--mount", "sh", "-c", LAY_OVER], **values)
    (work / "disk").rename(folder / "disk")
    _first_steps(work / "initramfs", modules, folder)
    shutil.rmtree(work)


def _fetch(work: Path) -> Path:
    """Debian's packages, from this machine's mirror, unpacked."""
    shown = subprocess.run(["apt-cache", "show", "--no-all-versions", KERNEL], capture_output=True, text=True)
    found = re.search(r"^Depends: (linux-image-\S+)", shown.stdout, re.MULTILINE)
    if not found:
        raise LabError(f"apt knows no {KERNEL}: run apt-get update.")
    _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", found[1], SHELL], folder=work)
    for package in sorted(work.glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(package), str(work / "unpacked")])
    return work / "unpacked"


def _first_steps(tree: Path, modules: Path, folder: Path) -> None:
    for name in ("bin", "dev", "modules", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy(folder / "busybox", tree / "bin/busybox")
    files = _in_order(modules)
    for file in files:
        shutil.copyfile(file, tree / "modules" / file.name)
    (tree / "modules/order").write_text("".join(f"{file.name}\n" for file in files))
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    _pack(tree, folder / "initramfs", folder / "busybox")


def _in_order(modules: Path) -> list[Path]:
    """The files of FIRST_MODULES and of those they need, each after what it needs."""
    lines = (line.partition(":") for line in (modules / "modules.dep").read_text().splitlines())
    needs = {path: rest.split() for path, _, rest in lines}
    wanted = [path for name in FIRST_MODULES for path in needs if Path(path).name == f"{name}.ko"]
    # depmod names what is needed from the outermost to the innermost.
    ordered = [each for path in wanted for each in (*reversed(needs[path]), path)]
    return [modules / path for path in dict.fromkeys(ordered)]


def _pack(tree: Path, target: Path, busybox: Path) -> None:
    _run(["sh", "-c", PACK], FOLDER=str(tree), TARGET=str(target), BUSYBOX=str(busybox))


def _run(command: list[str], *, folder: Path | None = None, **variables: str) -> None:
    """Raises LabError with the last line of what it wrote."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise LabError(f"The image for hosts with their own kernel cannot be built: {command[0]}: {last}")
