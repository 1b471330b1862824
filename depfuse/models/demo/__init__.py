"""Two small networks for a first fusion, each trained mostly on five of the ten digits; also in `checkpoints/`."""

from __future__ import annotations

from pathlib import Path

PARENTS = tuple(Path(__file__).with_name(f"digits-{name}.safetensors") for name in "ab")
