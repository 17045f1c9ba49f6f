"""On the path of a process (PYTHONPATH), which then has the GPUs that its environment names instead of the machine's.

FAKE_GPUS=G1,G2          healthy ones of these UUIDs
NVML_RECORDING=FILE      those of a recording (played_nvml.py)
"""

import importlib.util
import os
import sys
from pathlib import Path

if {"FAKE_GPUS", "NVML_RECORDING"} & set(os.environ) and importlib.util.find_spec("pynvml"):
    sys.path.append(str(Path(__file__).parent.parent))
    try:
        from played_nvml import plain_gpus, play
    finally:
        sys.path.pop()
    recording = os.environ.get("NVML_RECORDING")
    play(Path(recording) if recording else plain_gpus(os.environ["FAKE_GPUS"].split(",")))
