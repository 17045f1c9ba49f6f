"""The lab: real hosts for tests, each with its own systemd, sshd, address and disk, on this one machine.

    with Lab(["control-1", "control-2", "worker-1"]) as lab:
        lab.run("control-1", "systemctl start lavalite-lim")
        lab.power_off("control-1")                     # as if the plug were pulled
        lab.power_on("control-1", keep_disk=False)     # a new machine under the old name
        lab.cut("control-2")                           # its cable is out; it runs on
        lab.here(["curl", "http://198.18.0.12:8080/"]) # on the test's side of the network

A host is a systemd-nspawn container over one root folder that all share; what a host writes goes to a folder of its
own, its disk. It shares this machine's kernel, and cannot limit what runs on it. A host that must have a kernel of
its own is a machine in QEMU, made from the same root, on the same bridge; it boots in half a minute and all that it
does takes some ten times as long:

    with Lab(["control-1", "worker-1"], kernels=["worker-1"]) as lab: …

The hosts and the test's side sit in one network namespace that has no way out: nothing can leave by
accident, and every lab has the same addresses without seeing another.

    python -m lab create --hosts control-1,worker-1     for molecule; `python -m lab --help` shows the rest

Here belongs what makes, breaks and ends hosts. What is installed on them does not: that is the roles' work. Nothing
but the standard library is imported, and nothing but Debian packages is needed (`make lab-deps`).

    needs.py      whether this machine can carry a lab, and if not, why
    root.py       the root folder that all hosts share, built once and kept
    network.py    the namespace, its bridge, and the cables
    hosts.py      a host that shares this machine's kernel: its disk, its start, its end
    machines.py   a host with a kernel of its own, in QEMU: the same verbs
    kinds.py      which of the two a host is
    identity.py   what makes one host out of a root that many share
    image.py      kernel and disk of the hosts that have their own, built once and kept
    ssh.py        the key, the configuration, running a command on a host
    processes.py  a process that is never mistaken for a later one with its id
    state.py      what is on disk about each lab, so that a later process can end it
    lab.py        the Lab
    clean.py      ends what a killed test left behind
"""

from .lab import Lab
from .needs import LabError, why_no_kernel, why_not
from .state import Host

__all__ = ["Host", "Lab", "LabError", "why_no_kernel", "why_not"]
