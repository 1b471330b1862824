"""Lightning: checkpoints go into one's own module, and a callback fuses at the end of a real training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from depfuse.errors import CheckpointError, DepfuseError, RecipeError
from depfuse.integrations.lightning import FuseCallback, load
from depfuse.io.same_layout import layout_of, write_content

lightning = pytest.importorskip("lightning", reason="Lightning is not installed: pip install 'depfuse[lightning]'")

ModelCheckpoint = lightning.pytorch.callbacks.ModelCheckpoint
FAST = {"refit": "none", "calibration.images": 64}
GENERATOR = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.rand(64, 3, 8, 8, generator=GENERATOR), torch.arange(64) % 4


class Bare(lightning.LightningModule):
    """Its network runs in its steps alone."""

    def __init__(self, width: int = 6, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        body = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.net = nn.Sequential(*body, nn.Linear(width, 4))
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(4))

    def training_step(self, batch: Sequence[Tensor], _: int) -> Tensor:
        loss = self.loss(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.hparams.lr)


class Lit(Bare):
    """As tutorials have it."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


def trainer(folder: Path, *callbacks: Any, **settings: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings = {
        "max_epochs": 2,
        "enable_checkpointing": any(isinstance(own, ModelCheckpoint) for own in callbacks),
    } | settings
    return lightning.Trainer(default_root_dir=folder, callbacks=list(callbacks), **quiet, **settings)


def train(folder: Path, seed: int, *callbacks: Any, kind: type[Bare] = Lit, **settings: Any) -> tuple[Any, Bare]:
    torch.manual_seed(seed)
    module, own = kind(), trainer(folder, *callbacks, **settings)
    own.fit(module, DataLoader(TensorDataset(IMAGES, LABELS), batch_size=16))
    return own, module


pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::depfuse.errors.DepfuseWarning"),
]


@pytest.mark.parametrize("kind", [Lit, Bare])
def test_a_run_is_fused_with_an_earlier_one(kind: type[Bare], tmp_path: Path) -> None:
    earlier, first = train(tmp_path, 0, kind=kind)
    earlier.save_checkpoint(tmp_path / "earlier.ckpt")
    fusing = FuseCallback([tmp_path / "earlier.ckpt"], recipe=FAST, out=tmp_path / "child.ckpt")
    _, module = train(tmp_path, 1, fusing, kind=kind)
    assert fusing.result is not None
    of_the_run = fusing.result.parents[0].net(IMAGES)
    torch.testing.assert_close(of_the_run, copy.deepcopy(module).eval().net(IMAGES))  # it has kept its weights
    child = kind.load_from_checkpoint(tmp_path / "child.ckpt", weights_only=True).eval()
    torch.testing.assert_close(child.net(IMAGES), fusing.result.child(IMAGES))
    assert not torch.allclose(child.net(IMAGES), of_the_run)
    assert child.hparams.width == 6
    assert "optimizer_states" not in torch.load(tmp_path / "child.ckpt", weights_only=True)
    again = load(tmp_path / "child.ckpt", kind)
    assert type(again) is kind
    torch.testing.assert_close(again.net(IMAGES), child.net(IMAGES))
    # As the command line writes a child beside a parent: what builds the module is kept, and nothing of its training.
    write_content(
        tmp_path / "child2.ckpt",
        layout_of(tmp_path / "earlier.ckpt", None, first.state_dict()).content(child.state_dict()),
    )
    beside = kind.load_from_checkpoint(tmp_path / "child2.ckpt", weights_only=True).eval()
    torch.testing.assert_close(beside.net(IMAGES), child.net(IMAGES))
    kept = torch.load(tmp_path / "child2.ckpt", weights_only=True)
    assert kept.keys() <= {"state_dict", "hyper_parameters", "hparams_name", "pytorch-lightning_version"}
    assert kept["hyper_parameters"] == {"width": 6, "lr": 0.01}
    mine = kind(lr=1.0)
    assert load(tmp_path / "earlier.ckpt", mine) is mine
    torch.testing.assert_close(mine.net(IMAGES), first.eval().net(IMAGES))


def test_the_checkpoints_of_one_run_are_fused(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, monitor="loss", save_top_k=2, every_n_epochs=1)
    fusing = FuseCallback(recipe=FAST, batches=IMAGES)
    train(tmp_path, 0, keep, fusing, max_epochs=3)
    assert fusing.result is not None
    assert len(fusing.result.parents) == 2
    first = load(sorted(keep.best_k_models)[0], Lit)
    torch.testing.assert_close(fusing.result.parents[0](IMAGES), first(IMAGES))


def test_mistakes_are_said_before_the_training(tmp_path: Path) -> None:
    def refused(kind: type[DepfuseError], sentence: str, *callbacks: Any) -> None:
        with pytest.raises(kind, match=sentence):
            train(tmp_path, 0, *callbacks, max_steps=-1, max_epochs=10**6)

    refused(CheckpointError, "no file .*nowhere.ckpt", FuseCallback([tmp_path / "nowhere.ckpt"]))
    torch.save({"state_dict": Lit(width=9).state_dict()}, tmp_path / "wide.ckpt")
    refused(
        CheckpointError, r"wide\.ckpt does not fit Lit: net.0.weight has shape", FuseCallback([tmp_path / "wide.ckpt"])
    )
    refused(RecipeError, "there is nothing to fuse with: give checkpoints", FuseCallback())
    (tmp_path / "file").touch()
    torch.save({"state_dict": Lit().state_dict()}, tmp_path / "fine.ckpt")
    refused(
        CheckpointError,
        "cannot be written",
        FuseCallback([tmp_path / "fine.ckpt"], out=tmp_path / "file" / "child.ckpt"),
    )
    with pytest.raises(RecipeError, match="other runs are given as a list"):
        FuseCallback("earlier.ckpt")
    with pytest.raises(RecipeError, match="nonsense"):
        FuseCallback(["earlier.ckpt"], recipe={"nonsense": 1})


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str, str]]:
            return open, (str(trap), "w")

    torch.save(
        {"state_dict": Lit().state_dict(), "hyper_parameters": {"width": 6, "lr": Trap()}}, tmp_path / "bad.ckpt"
    )
    load(tmp_path / "bad.ckpt", Lit)
    assert not trap.exists()


@pytest.mark.parametrize("several", [lambda one: {"a": one, "b": one}, lambda one: [one, one]], ids=["mapping", "list"])
def test_several_loaders_are_refused_before_the_training_unless_samples_are_given(several: Any, tmp_path: Path) -> None:
    class Paired(Lit):
        steps = 0

        def training_step(self, batch: Any, index: int) -> Tensor:
            self.steps += 1
            return super().training_step(batch["a"] if isinstance(batch, dict) else batch[0], index)

    earlier, _ = train(tmp_path, 0)
    earlier.save_checkpoint(tmp_path / "earlier.ckpt")
    batches = several(DataLoader(TensorDataset(IMAGES, LABELS), batch_size=16))
    module = Paired()
    with pytest.raises(RecipeError, match="several loaders: give FuseCallback the samples"):
        trainer(tmp_path, FuseCallback([tmp_path / "earlier.ckpt"], recipe=FAST)).fit(module, batches)
    assert module.steps == 0
    fusing = FuseCallback([tmp_path / "earlier.ckpt"], recipe=FAST, batches=IMAGES)
    trainer(tmp_path, fusing, max_epochs=1).fit(Paired(), batches)
    assert fusing.result is not None
