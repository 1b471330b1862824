"""The shipped digits networks."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from depfuse.io.loading import load_network

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
ARCHITECTURE = "digits_resnet(width=1.25)"


def digits_files(*names: str) -> list[str]:
    """Where they lie: `digits_files("a", "same-b")`."""
    return [str(CHECKPOINTS / f"digits-{name}.safetensors") for name in names]


def digits_parents(*names: str) -> list[nn.Module]:
    """The same as networks, in evaluation mode."""
    return [load_network(path) for path in digits_files(*names)]
