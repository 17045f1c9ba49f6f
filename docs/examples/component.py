"""A component of docs/examples/planner.py: it serves until it is asked to end, then finishes what it has begun.

python component.py NAME FOLDER

What it did is written to FOLDER, a file for each process: its name, its GPUs, and at the end `drained`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(name: str, folder: str) -> int:
    log = Path(folder) / f"{name}.{os.environ['LAVALITE_COMPUTE_GROUP']}.{os.getpid()}"
    # Blocked before anybody can know of us, so that no request to end comes too early.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    log.write_text(f"{name} serves on {os.environ.get('CUDA_VISIBLE_DEVICES', '')}\n")
    signal.sigwait({signal.SIGTERM})
    # Here a server answers the requests that it has taken, and takes no more.
    with log.open("a") as file:
        file.write("drained\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
