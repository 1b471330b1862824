"""Whether spandrel is here, which knows upscalers by their tensors: told without importing it, or torch."""

from __future__ import annotations

import importlib.util

EXTRA = "pip install 'depfuse[upscale]'"


def has_spandrel() -> bool:
    """Tell whether spandrel can be imported."""
    return importlib.util.find_spec("spandrel") is not None
