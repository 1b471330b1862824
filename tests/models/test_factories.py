"""Classes, functions and LightningModules that build networks, with the arguments that they need."""

from __future__ import annotations

import textwrap
from pathlib import Path

import lightning
import pytest
import torch
from torch import Tensor, nn

from depfuse import load
from depfuse.errors import ArchitectureError
from depfuse.models import build_network


class Net(nn.Module):
    def __init__(self, width: int, classes: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Plain(lightning.LightningModule):
    """One with a forward pass, as most have."""

    def __init__(self, width: int, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net, self.loss = Net(width), nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Bare(lightning.LightningModule):
    """One that runs its network in its steps alone."""

    def __init__(self, width: int, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net, self.loss = Net(width), nn.CrossEntropyLoss()


class Two(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = Net(4), Net(4)


def write_checkpoint(path: Path, model: lightning.LightningModule) -> None:
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=True)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "nets.py").write_text(
        textwrap.dedent(
            """
            from torch import nn
            from test_factories import Bare, Net, Plain, Two


            def made(width, depth, *more, bias=True, **others):
                return Net(width)


            class NoNetwork:
                pass
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return "nets.py"


def test_arguments_that_a_factory_needs_are_named(file: str) -> None:
    with pytest.raises(ArchitectureError, match=r"^nets\.py:Net needs width: write nets\.py:Net\(width=\.\.\.\)$"):
        build_network("nets.py:Net")
    with pytest.raises(ArchitectureError, match=r"needs depth: write nets\.py:made\(depth=\.\.\.\)$"):
        build_network("nets.py:made(width=4)")
    with pytest.raises(ArchitectureError, match=r"needs width and depth: write nets\.py:made\(width=.*, depth=.*\)$"):
        build_network("nets.py:made")
    assert type(build_network("nets.py:made(width=4, depth=2)")).__name__ == "Net"
    with pytest.raises(ArchitectureError, match=r"gave a NoNetwork, not a torch\.nn\.Module"):
        build_network("nets.py:NoNetwork")


@pytest.mark.filterwarnings("ignore:.*passed over net:depfuse.errors.DepfuseWarning")
@pytest.mark.parametrize("kind", [Plain, Bare])
def test_a_module_of_lightning_is_built_by_its_hyper_parameters(
    file: str, kind: type[lightning.LightningModule], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = kind(width=6)
    write_checkpoint(tmp_path / "last.ckpt", model)
    expected = model.net.state_dict()
    for arch in (f"nets.py:{kind.__name__}", kind):
        found = load("last.ckpt", arch)
        assert type(found).__name__ == ("Plain" if kind is Plain else "Net")
        images = torch.rand(2, 3, 8, 8)
        torch.testing.assert_close(found(images), model.net.eval()(images))
    assert all(torch.equal(own, expected[key]) for key, own in load("last.ckpt", Net).state_dict().items())
    with pytest.raises(Exception, match="shape"):
        load("last.ckpt", f"nets.py:{kind.__name__}(width=7)")  # what one says oneself counts


def test_hyper_parameters_that_read_files_are_not_passed(tmp_path: Path) -> None:
    read = []

    class Reads(Plain):
        def __init__(self, width: int, checkpoint_path: str = "") -> None:
            super().__init__(width)
            read.append(checkpoint_path)

    write_checkpoint(tmp_path / "last.ckpt", Reads(6, "elsewhere.pt"))
    load(tmp_path / "last.ckpt", Reads)
    assert read == ["elsewhere.pt", ""]


def test_of_several_networks_inside_one_is_asked_for(file: str) -> None:
    with pytest.raises(ArchitectureError, match=r"with 2 networks inside \(generator, critic\): give one network"):
        build_network("nets.py:Two")


@pytest.mark.parametrize("name", ["classes", "num_classes", "n_classes"])
def test_the_number_of_classes_is_passed_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    """Factories of others call it num_classes; a file of four classes did not fit one whose own default is 1,000."""
    (tmp_path / "heads.py").write_text(
        f"from torch import nn\ndef head({name}=1000, in_chans=3):\n    return nn.Conv2d(in_chans, {name}, 1)\n"
    )
    head = build_network(f"{tmp_path / 'heads.py'}:head", classes=4, in_channels=1)
    assert head.weight.shape == (4, 1, 1, 1)
    head = build_network(f"{tmp_path / 'heads.py'}:head({name}=7)", classes=4)
    assert head.weight.shape == (7, 3, 1, 1)  # what one says oneself counts
