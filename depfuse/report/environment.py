"""The environment of a run."""

from __future__ import annotations

import os
import platform

import torch

from depfuse.io.versions import library_versions
from depfuse.report.schema import Environment


def describe_environment(device: torch.device) -> Environment:
    """Collect versions, platform, processors and the device that the run used."""
    cuda = device.type == "cuda"
    return Environment(
        depfuse=library_versions().get("depfuse", "not installed"),
        python=platform.python_version(),
        torch=str(torch.__version__),
        platform=platform.platform(),
        cpu_count=os.cpu_count(),
        threads=torch.get_num_threads(),
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if cuda else platform.processor() or None,
    )
