"""Which kind of machine this is: on one kind, the same program rounds in the same way."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import numpy as np
import scipy
import torch
from threadpoolctl import threadpool_info


def kind() -> str:
    """Name all that rounding depends on; also the name of the file that holds its records.

    Versions of the libraries that compute, the instructions that torch and OpenBLAS chose, whether there are tile
    matrices (AMX), which oneDNN takes, and the processor, by which MKL and oneDNN choose as well.
    """
    blas = {info.get("architecture") for info in threadpool_info() if info["internal_api"] == "openblas"}
    parts = [
        f"torch-{torch.__version__.split('+')[0]}",
        f"numpy-{np.__version__}",
        f"scipy-{scipy.__version__}",
        torch.backends.cpu.get_cpu_capability(),
        os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "AMX" if torch.cpu._is_amx_tile_supported() else "",
        *sorted(str(name) for name in blas),
        processor(),
    ]
    return re.sub(r"[^A-Za-z0-9.-]+", "-", "_".join(filter(None, parts)).replace(" ", "-")).lower()


def processor() -> str:
    """Maker, family and model, where Linux tells them; the name of the architecture elsewhere."""
    listed = Path("/proc/cpuinfo")
    text = listed.read_text(encoding="utf-8") if listed.exists() else ""
    found = [re.search(rf"^{name}\s*: (.+)$", text, re.MULTILINE) for name in ("vendor_id", "cpu family", "model")]
    return "-".join(match[1] for match in found if match) or platform.machine()
