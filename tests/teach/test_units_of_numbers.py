"""Fine-tuning on numbers takes the same steps whatever their unit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from depfuse.data.preprocessing import Preprocessing
from depfuse.data.tensors import DataSet, Split
from depfuse.ensemble.ensemble import Ensemble
from depfuse.recipe.sections import Train
from depfuse.tasks.regression import Regression
from depfuse.teach.distil import Distillation


def fitted(scale: float, last: nn.Module | None = None) -> float:
    """Fine-tune a network on targets of this scale; the share of their variance that it leaves."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 5)
    targets = scale * torch.stack([inputs[:, 0], inputs[:, 1] * inputs[:, 2]], 1)
    network = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 2), *([] if last is None else [last]))
    with torch.no_grad():
        network[2].weight.mul_(scale)
        network[2].bias.mul_(scale)
    data = DataSet("numbers", (), Split(inputs, targets), None, Preprocessing())
    task = Regression.of([targets, targets])
    training = Distillation(data)
    training.train(
        network, Ensemble([network], (1.0,), task=task), Train(finetune=20, learning_rate=0.02),
        seed=0, name="child", origin="",
    )  # fmt: skip
    left: Tensor = (network(inputs) - targets).square().mean() / targets.var(0).mean()
    return float(left.detach())


@pytest.mark.filterwarnings("ignore:the training data are no images")
def test_a_unit_changes_no_step() -> None:
    whole = fitted(1.0)
    assert whole < 0.7
    for scale in (1e-3, 1e3):
        assert fitted(scale) == pytest.approx(whole, rel=1e-2)


class Doubled(nn.Module):
    """A last layer of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_small_numbers_of_another_last_layer_do_not_diverge() -> None:
    assert fitted(1e-3, Doubled()) < 1.5
