"""Files of users that build networks: alone, beside others, or in a package."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from depfuse import fuse
from depfuse.errors import ArchitectureError
from depfuse.models import build_network

BLOCKS = """
from torch import nn


class Block(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
"""
NET = """
from torch import nn

from .blocks import Block
from ..settings import CLASSES


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body, self.head = Block(width), nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
"""


@pytest.fixture(params=[True, False], ids=["packages", "folders"])
def package(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return written(tmp_path / "first", 4, initial=request.param)


def written(folder: Path, classes: int, *, initial: bool) -> Path:
    """Write pkg/settings.py, pkg/models/blocks.py and pkg/models/net.py."""
    models = folder / "pkg" / "models"
    models.mkdir(parents=True)
    (folder / "pkg" / "settings.py").write_text(f"CLASSES = {classes}\n")
    (models / "blocks.py").write_text(BLOCKS)
    (models / "net.py").write_text(NET)
    if initial:
        (folder / "pkg" / "__init__.py").write_text("")
        (models / "__init__.py").write_text("from .net import Net\n")
    return models / "net.py"


def test_a_file_of_a_package_may_import_relatively_to_it(package: Path) -> None:
    network = build_network(f"{package}:Net(width=8)")
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 4)
    assert type(build_network(f"{package}:Net(width=8)")) is type(network)
    assert str(package.parent) not in sys.path
    again = pickle.loads(pickle.dumps(network))
    assert type(again) is type(network)


def test_two_packages_of_one_name_are_kept_apart(package: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "second", 7, initial=(package.parent / "__init__.py").exists())
    widths = [build_network(f"{path}:Net(width=8)")(torch.rand(2, 3, 8, 8)).shape[1] for path in (package, other)]
    assert widths == [4, 7]


def test_networks_of_a_package_are_fused(package: Path) -> None:
    parents: list[nn.Module] = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        parents.append(build_network(f"{package}:Net(width=8)").eval())
    child = fuse(parents, "fast", torch.rand(40, 3, 8, 8)).child
    assert child(torch.rand(2, 3, 8, 8)).shape == (2, 4)


def test_a_missing_argument_and_a_missing_module_are_one_sentence(package: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"Net needs width: write .*:Net\(width=\.\.\.\)"):
        build_network(f"{package}:Net")
    (package.parent / "broken.py").write_text("from .missing import Net\n")
    with pytest.raises(ArchitectureError, match=r"importing .*broken\.py raised ModuleNotFoundError"):
        build_network(f"{package.parent / 'broken.py'}:Net")
    assert not [name for name in sys.modules if name.startswith("depfuse_user_") and name.endswith(".broken")]
