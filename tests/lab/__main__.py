"""python -m lab: labs for molecule, and for looking around by hand. `tests` must be on PYTHONPATH."""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from . import clean, network, state
from .image import machine_image
from .lab import Lab
from .needs import LabError, why_no_kernel, why_not
from .root import shared_root

HELD = "LAVALITE_LAB_NAME"
"""Set by `run`: create and destroy then fill and empty that lab, and its namespace stays."""
INVENTORY = "LAVALITE_LAB_INVENTORY"


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.verb(options) or 0)
    except LabError as problem:
        print(f"lab: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except subprocess.TimeoutExpired as late:
        print(f"lab: {late}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: object, text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(verb=run)
        made.add_argument("--name", default=_default_name(), help="of the lab (default: %(default)s)")
        return made

    create = verb("create", _create, "make hosts, and the lab if there is none; hosts that are there stay")
    create.add_argument("--hosts", required=True, help="names, separated by commas")
    create.add_argument("--kernels", default="", help="those of them that get a kernel of their own")
    create.add_argument("--inventory", type=Path, help="also write Ansible's inventory to this file")
    create.add_argument("--group", action="append", default=[], metavar="GROUP=HOST,…", help="for the inventory")
    verb("destroy", _destroy, "end all hosts, and the lab unless `run` holds it")
    run = verb("run", _run, f"run a command in a lab's network; it finds {HELD} and {INVENTORY} set")
    run.add_argument("command", nargs=argparse.REMAINDER)
    ssh = verb("ssh", _ssh, "run a command on a host")
    ssh.add_argument("host")
    ssh.add_argument("command", nargs=argparse.REMAINDER)
    for name, text in (("power-off", "pull the plug"), ("cut", "pull the cable"), ("join", "plug the cable in")):
        verb(name, _one_host(name.replace("-", "_")), f"{text} of a host").add_argument("host")
    power_on = verb("power-on", _power_on, "start a host that is off")
    power_on.add_argument("host")
    power_on.add_argument("--lose-disk", action="store_true", help="as a new machine under the old name")
    verb("list", _list, "show all labs and their hosts")
    verb("clean", _clean, "end labs whose owner has died").add_argument(
        "--all", action="store_true", help="end every lab of this machine, those in use too"
    )
    verb("root", _root, "build the hosts' root folder if there is none yet, and print its path")
    verb("image", _image, "as root, for what hosts with a kernel of their own boot from")
    return parser


def _default_name() -> str:
    """The lab that `run` holds; else one that belongs to this checkout, so that destroy finds what create made."""
    checkout = str(Path(__file__).resolve().parents[2])
    return os.environ.get(HELD) or "m" + hashlib.sha256(checkout.encode()).hexdigest()[:8]


def _create(options: argparse.Namespace) -> None:
    names = [name for name in options.hosts.split(",") if name]
    lab = Lab(names, name=options.name, owned=False)
    made = options.name not in state.labs()
    if made:
        lab.create()
    try:
        lab.add(names, kernels=[name for name in options.kernels.split(",") if name])
    except BaseException:
        if made:
            lab.destroy()
        raise
    groups = {group: members.split(",") for group, _, members in (each.partition("=") for each in options.group)}
    for file in filter(None, (state.folder(options.name) / "inventory.json", options.inventory)):
        lab.write_inventory(file, groups)


def _destroy(options: argparse.Namespace) -> None:
    held = options.name == os.environ.get(HELD)
    (clean.remove_hosts if held else clean.destroy)(options.name)


def _run(options: argparse.Namespace) -> int:
    """In a lab that exists; else in a new one that ends with the command."""
    if not options.command:
        raise LabError("Say which command to run.")
    if options.name in state.labs():
        return _enter(Lab.open(options.name), options.command)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda signum, frame: sys.exit(128 + signum))
    with Lab() as lab:
        return _enter(lab, options.command)


def _enter(lab: Lab, command: list[str]) -> int:
    inventory = state.folder(lab.name) / "inventory.json"
    if not inventory.exists():
        lab.write_inventory(inventory)
    environment = {**os.environ, HELD: lab.name, INVENTORY: str(inventory)}
    return subprocess.run([*lab.inside(), *command], env=environment).returncode


def _ssh(options: argparse.Namespace) -> int:
    done = Lab.open(options.name).run(options.host, " ".join(options.command), check=False, timeout_seconds=600)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


def _one_host(verb: str) -> object:
    return lambda options: getattr(Lab.open(options.name), verb)(options.host)


def _power_on(options: argparse.Namespace) -> None:
    Lab.open(options.name).power_on(options.host, keep_disk=not options.lose_disk)


def _list(options: argparse.Namespace) -> None:
    with state.locked():
        found = [state.load(lab) for lab in state.labs()]
    for now in found:
        kept = f"until process {now.owner.pid} ends" if now.owner else "until destroyed"
        print(f"{now.name}: {kept}; enter with {' '.join(network.inside(now.name))}")
        for host in now.hosts.values():
            print(f"  {host.name} {host.address} {'on' if host.on else 'off'}")


def _clean(options: argparse.Namespace) -> None:
    for lab in clean.clean(everything=options.all):
        print(f"ended {lab}")


def _root(options: argparse.Namespace) -> None:
    if reason := why_not():
        raise LabError(f"{reason[0].upper()}{reason[1:]}.")
    print(shared_root())


def _image(options: argparse.Namespace) -> None:
    if reason := why_no_kernel():
        raise LabError(f"{reason[0].upper()}{reason[1:]}.")
    print(machine_image(shared_root()).folder)


if __name__ == "__main__":
    sys.exit(main())
