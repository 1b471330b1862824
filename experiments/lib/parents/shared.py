"""Real pairs of parents that the experiments run on.

They are networks that other people trained; they and the data are looked for in the folder named by the
environment variable DEPFUSE_SHARED (default: `shared` beside this repository).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import nn

from depfuse.data import DataSet, load_data
from depfuse.io.checkpoint import read_checkpoint
from depfuse.io.loading import load_into
from depfuse.models import build_network
from experiments.lib.places import SHARED


@dataclass(frozen=True)
class Pair:
    """Two checkpoints of one network, and the data they were trained on."""

    name: str
    architecture: str
    files: tuple[str, str]
    data: str

    def networks(self) -> list[nn.Module]:
        """The two parents, in evaluation mode."""
        found = []
        for file in self.files:
            network = build_network(f"{SHARED}/models/{self.architecture}")
            load_into(network, read_checkpoint(SHARED / "checkpoints" / file))
            found.append(network.eval())
        return found

    def dataset(self) -> DataSet:
        """The data, pre-processed as in the parents' training."""
        return mnist() if self.data == "mnist" else cifar10()


def _resnet20(first: str, second: str) -> Pair:
    files = (f"cifar10-resnet20/{first}.th", f"cifar10-resnet20/{second}.th")
    return Pair(f"ResNet20 {first} + {second}", "cifar_resnet_a.py:resnet20", files, "cifar10")


PAIRS = {
    "simplenet": Pair(
        "SimpleNet 1 + 2",
        "simplenet.py:simplenet",
        ("mnist-simplenet/example_model_fusion_1.dat", "mnist-simplenet/example_model_fusion_2.dat"),
        "mnist",
    ),
    "resnet20-8-1-8-2": _resnet20("run8-1", "run8-2"),
    "resnet20-8-1-8-3": _resnet20("run8-1", "run8-3"),
    "resnet20-8-2-8-3": _resnet20("run8-2", "run8-3"),
    "resnet20-1-4": _resnet20("run1", "run4"),
    "resnet56-3-5": Pair(
        "ResNet56 run3 + run5",
        "cifar_resnet_a.py:resnet56",
        ("cifar10-resnet56/run3.th", "cifar10-resnet56/run5.th"),
        "cifar10",
    ),
}


def require_shared() -> None:
    """Stop with a sentence where the parents are absent."""
    if not (SHARED / "checkpoints").is_dir():
        raise SystemExit(f"{SHARED}/checkpoints is not there: set DEPFUSE_SHARED to the folder of real parents")


@cache
def mnist() -> DataSet:
    """MNIST, scaled to [0, 1]."""
    return load_data(str(SHARED / "data" / "mnist.npz"))


def unpacked(name: str) -> Path:
    """The file of cifar10 or cifar100; unpacked once into the user's cache."""
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "depfuse"
    file = cache_folder / f"{name}.npz"
    if not file.exists():
        cache_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder) as folder:
            subprocess.run([sys.executable, SHARED / "tools" / "unpack_images.py", folder, name], check=True)
            (Path(folder) / file.name).rename(file)
    return file


@cache
def cifar10() -> DataSet:
    """CIFAR-10 with the normalisation of the ResNet parents."""
    return load_data(str(unpacked("cifar10")), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
