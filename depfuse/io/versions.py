"""Versions of the libraries that results depend on."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

import numpy as np
import torch


def library_versions() -> dict[str, str]:
    """Collect the versions of Python, torch, numpy and depfuse."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions["depfuse"] = metadata.version("depfuse")
    return versions
