"""Logical hosts as virtual machines: the role `vm` of PartOrder, with QEMU.

    role.py         make, remove and check: the steps in their order
    wanted.py       what is ordered, checked; how a machine, its unit, its tap and its disks are named
    settings.py     what sbatchd.conf says
    images.py       where images lie;  accelerator.py  whether KVM works
    command.py      QEMU's command line, and what is plugged into it; pure
    seed.py         the guest's first instructions, as cloud-init reads them
    files.py        the folder of a machine: all that it has on the node
    begin.py        a script: the last steps before QEMU, as root
    runners.py      who owns QEMU: nobody; units.py  systemd
    qmp.py          QEMU's protocol; the only file that imports qemu.qmp
    resize.py       CPUs and memory come and go;  guest.py  what the guest is asked for
    disks.py        disks come, go and take each other's place;  places.py  which has taken which
    console.py      a terminal on the node as the machine's console

A machine outlives sbatchd, and all that it has lies in one folder. Nothing else has to be found again: its process is
known by the folder's name, its tap goes with its process.
"""
