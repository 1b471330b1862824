"""Folders that experiments read and write."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = ROOT / "checkpoints"
MEASUREMENTS = ROOT / "experiments" / "results"
PAGES = ROOT / "docs" / "results"
SHARED = Path(os.environ.get("DEPFUSE_SHARED", ROOT.parent / "shared"))
