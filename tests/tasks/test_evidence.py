"""What outputs mean is told from trained parents: scores by cross-entropy are never taken for anything else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse import fuse
from depfuse.data import Loader, Split
from depfuse.tasks.choose import have_same_heads
from depfuse.tasks.evidence import Evidence, find_evidence

IMAGES, STEPS = 400, 120
Loss = Callable[[Tensor, Tensor], Tensor]


class Rows(nn.Module):
    def __init__(self, outputs: int, last: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.deep, self.head = nn.Linear(16 * 4, 32), nn.Linear(32, outputs)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.norm(self.conv(x))), 2).flatten(1)
        x = self.head(F.relu(self.deep(x)))
        return x if self.last is None else self.last(x)


class Maps(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 24, 3, 1, 1), nn.BatchNorm2d(24), nn.Conv2d(24, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))))


@cache
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    blocks = 2 * torch.rand(IMAGES, 3, 2, 2, generator=generator) - 1
    blocks[:, 2] = blocks[:, 2].sign()
    return F.interpolate(blocks, scale_factor=3) + 0.1 * torch.randn(IMAGES, 3, 6, 6, generator=generator)


def numbers() -> Tensor:
    """Mean colours, and a difference of two blocks: (N, 4), of variance one."""
    x = images()
    found = torch.cat([x.mean((2, 3)), (x[:, :1, :3, :3] - x[:, :1, 3:, 3:]).mean((2, 3))], 1)
    return (found - found.mean(0)) / found.std(0)


def classes() -> Tensor:
    return 2 * (numbers()[:, 0] > 0).long() + (numbers()[:, 1] > 0).long()


def alike(outputs: Tensor, target: Tensor) -> Tensor:
    """Contrastive loss: images of one class are near (Khosla et al. 2020)."""
    unit = F.normalize(outputs, dim=1)
    other = ~torch.eye(len(unit), dtype=torch.bool)
    logits = (unit @ unit.T / 0.2).masked_fill(~other, -1e9).log_softmax(1)
    pairs = (target[:, None] == target) & other
    return -(logits * pairs).sum(1).div(pairs.sum(1).clamp_min(1)).mean()


def trained(make: Callable[[], nn.Module], loss: Loss, target: Tensor, seed: int, steps: int = STEPS) -> nn.Module:
    torch.manual_seed(seed)
    network = make().train()
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(steps):
        chosen = torch.randint(IMAGES, (64,))
        optimiser.zero_grad()
        loss(network(images()[chosen]), target[chosen]).backward()
        optimiser.step()
    return network.eval()


def told(parents: list[nn.Module]) -> Evidence:
    with torch.no_grad():
        outputs = [parent(images()) for parent in parents]
    same = outputs[0].dim() > 1 and have_same_heads(parents, outputs[0].shape[1])
    return find_evidence(outputs, images(), same_heads=same)


def labels() -> Tensor:
    """Whether each block is blue."""
    return (images()[:, 2, ::3, ::3].flatten(1) > 0).float()


def pixels() -> Tensor:
    return F.avg_pool2d(images(), 3, 1, 1).argmax(1)


BCE, MSE, CE = F.binary_cross_entropy_with_logits, F.mse_loss, F.cross_entropy
KINDS: dict[str, tuple[Callable[[], nn.Module], Loss, Callable[[], Tensor], str]] = {
    "classes": (partial(Rows, 4), CE, classes, "classes"),
    "two classes": (partial(Rows, 2), CE, lambda: classes() % 2, "classes"),
    "classes of which most never occur": (partial(Rows, 60), CE, classes, "classes"),
    "probabilities": (partial(Rows, 4, nn.Softmax(1)), lambda p, t: F.nll_loss(p.log(), t), classes, "classes"),
    "their logarithms": (partial(Rows, 4, nn.LogSoftmax(1)), F.nll_loss, classes, "classes"),
    "labels": (partial(Rows, 4), BCE, labels, "multilabel"),
    "three numbers": (partial(Rows, 4), MSE, numbers, "regression"),
    "numbers in large units": (partial(Rows, 4), lambda z, t: MSE(z / 20, t), numbers, "regression"),
    "one logit": (partial(Rows, 1), BCE, lambda: labels()[:, :1], "binary"),
    "one number": (partial(Rows, 1), MSE, lambda: numbers()[:, :1], "regression"),
    "directions": (partial(Rows, 24, partial(F.normalize, dim=1)), alike, classes, "features"),
    "embeddings": (partial(Rows, 24), alike, classes, "features"),
    "maps of classes that follow the colours": (partial(Maps, 3), CE, pixels, "dense"),
    "images": (partial(Maps, 3), MSE, images, "regression"),
    "one map of logits": (partial(Maps, 1), BCE, lambda: (images()[:, 2:] > 0).float(), "binary"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_trained_networks_tell_what_their_outputs_mean(kind: str) -> None:
    make, loss, target, task = KINDS[kind]
    parents = [trained(make, loss, target(), seed) for seed in (0, 1)]
    found = told(parents)
    assert found.task == task, found
    assert found.clear or kind == "classes of which most never occur"


@pytest.mark.parametrize("steps", [0, 1, 3, 10, 30])
@pytest.mark.parametrize("same", [True, False])
def test_class_scores_are_class_scores_after_few_steps_and_from_one_start(steps: int, same: bool) -> None:
    start = Rows(4)
    make = (lambda: copy.deepcopy(start)) if same else partial(Rows, 4)
    parents = [trained(make, F.cross_entropy, classes(), seed, steps) for seed in (2, 3)]
    assert told(parents).task == "classes"


def test_what_cannot_be_told_is_assumed_and_said() -> None:
    parent = trained(partial(Rows, 4), F.mse_loss, numbers(), 0)
    found = told([parent, copy.deepcopy(parent)])
    assert (found.task, found.clear) == ("classes", False)
    assert "assumed" in found.sentence
    assert "`task`" in found.sentence
    few = find_evidence([torch.randn(5, 4), torch.randn(5, 4)])
    assert (few.task, few.clear) == ("classes", False)
    assert find_evidence([torch.randn(50, 4), torch.randn(50, 3)]).because == "the parents know different labels"


@pytest.mark.parametrize(("kind", "clear"), [("images", True), ("maps of classes that follow the colours", False)])
def test_copies_of_one_network_that_gives_pictures_are_told_by_the_pictures(kind: str, clear: bool) -> None:
    make, loss, target, task = KINDS[kind]
    parent = trained(make, loss, target(), 0)
    found = told([parent, copy.deepcopy(parent)])
    assert (found.task, found.clear) == (task, clear), found


def test_the_choice_is_that_of_the_result_and_is_said() -> None:
    parents = [trained(partial(Rows, 4), F.mse_loss, numbers(), seed) for seed in (0, 1)]
    data = Loader(Split(images()), batch_size=100)
    result = fuse(parents, {"refit": "none"}, data)
    assert result.recipe.task.name == "regression"
    assert "which class scores leave open" in result.meaning.because
    assert "regression: the outputs are taken for numbers" in repr(result)
    named = fuse(parents, {"refit": "none"}, data, task="classes")
    assert (named.recipe.task.name, named.meaning.because) == ("classes", "")


def test_labels_of_0_and_1_make_one_number_a_logit_unless_it_is_a_probability() -> None:
    """By itself a logit near zero looks like a number; labels of other values leave it one."""
    near = [0.3 * torch.randn(50, 1, 4, 4) + 0.1 for _ in range(2)]
    masks = torch.randint(0, 2, (50, 4, 4))
    assert find_evidence(near).task == "regression"
    assert "name the `task`" in find_evidence(near).sentence
    assert find_evidence(near, labels=masks).sentence == (
        "the outputs are taken for yes-or-no logits: the labels are 0 and 1"
    )
    assert find_evidence([own.sigmoid() for own in near], labels=masks).task == "regression"
    assert find_evidence([10 * own.sign() for own in near], labels=masks * 0.3).task == "regression"
    assert find_evidence(near, labels=2 * masks).doubtful
    maps = [torch.randn(50, 2, 4, 4) for _ in range(2)]
    assert find_evidence(maps, labels=masks).task == find_evidence(maps).task
