"""Networks that differ in their last layer alone take one forward pass together, and all others one each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from digits_parents import digits_parents, small_parents
from torch import Tensor, nn

from depfuse import fuse
from depfuse.data import DataSet, Loader, calibration_loader, load_data
from depfuse.evaluate import evaluate, evaluate_agreement, evaluate_together
from depfuse.evaluate.together import Together
from depfuse.fusion.agreement import compare_agreement
from depfuse.fusion.comparison import compare

IMAGES = torch.linspace(-1, 1, 40).reshape(8, 5)


class Headed(nn.Module):
    """A body and a head, used in one way or another."""

    def __init__(self, way: Callable[[nn.Module, Tensor], Tensor] = lambda self, x: self.head(x)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.way = nn.Linear(5, 7), nn.Linear(7, 3), way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, self.body(x).relu())


def with_other_head(model: nn.Module, outputs: int = 3) -> nn.Module:
    """Copy a network, with another last layer."""
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    other.head = nn.Linear(7, outputs)
    return other.eval()


@contextmanager
def runs_counted(kind: type[nn.Module], size: int) -> Iterator[list[int]]:
    """Count the calls of networks of a class on batches of a size."""
    calls: list[int] = []

    def count(module: nn.Module, inputs: Sequence[Tensor], output: object) -> None:
        if isinstance(module, kind) and len(inputs[0]) == size:
            calls.append(id(module))

    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def outputs_and_runs(*models: nn.Module) -> tuple[list[Tensor], int]:
    """Run networks together on one batch; return outputs and the number of forward passes."""
    with torch.inference_mode(), runs_counted(Headed, len(IMAGES)) as calls:
        return Together(models)(IMAGES), len(calls)


@pytest.mark.parametrize("outputs", [3, 4])
def test_a_body_is_computed_once_for_all_of_its_heads(outputs: int) -> None:
    first = Headed().eval()
    others = [with_other_head(first, outputs), with_other_head(first)]
    hooks = len(first.head._forward_hooks)
    found, runs = outputs_and_runs(first, *others)
    assert runs == 1
    for own, model in zip(found, [first, *others], strict=True):
        assert torch.equal(own, model(IMAGES))
    assert len(first.head._forward_hooks) == hooks


def softened(self: nn.Module, x: Tensor) -> Tensor:
    return self.head(x).log_softmax(1)


def twice(self: nn.Module, x: Tensor) -> Tensor:
    return self.head(x + self.head(x).mean())


def beside(self: nn.Module, x: Tensor) -> Tensor:
    return self.head(x * self.head.weight.sum())


def changed(self: nn.Module, x: Tensor) -> Tensor:
    return self.head(x).mul_(self.head.weight.sum())


@pytest.mark.parametrize("way", [softened, twice, beside, changed], ids=lambda way: way.__name__)
def test_a_head_whose_output_is_not_all_that_it_does_is_run_with_its_body(way: Callable[..., Tensor]) -> None:
    first = Headed(way).eval()
    other = with_other_head(first)
    found, runs = outputs_and_runs(first, other)
    assert runs == 2
    assert torch.equal(found[1], other(IMAGES))


def test_networks_that_differ_elsewhere_are_run_by_themselves() -> None:
    first, body, code = Headed().eval(), with_other_head(Headed()), with_other_head(Headed(lambda m, x: m.head(-x)))
    with torch.no_grad():
        body.body.weight[0, 0] += 1
    found, runs = outputs_and_runs(first, body, code)
    assert runs == 3
    assert all(torch.equal(own, model(IMAGES)) for own, model in zip(found, (first, body, code), strict=True))


def test_a_way_that_depends_on_the_batch_is_followed() -> None:
    def by_size(self: nn.Module, x: Tensor) -> Tensor:
        return self.head(x) if len(x) == 1 else F.normalize(self.head(x))

    first = Headed(by_size).eval()
    other = with_other_head(first)
    found, runs = outputs_and_runs(first, other)
    assert runs == 2
    assert torch.equal(found[1], other(IMAGES))


def test_scores_of_heads_are_those_of_their_own_passes() -> None:
    first = Headed().eval()
    models, batches = [first, with_other_head(first)], [(IMAGES, torch.arange(8) % 3)]
    assert evaluate_together(models, batches) == [evaluate(model, batches) for model in models]
    assert evaluate_agreement(models[:1], models[1:], batches)[2][0].count == 8


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data("digits")


@pytest.mark.parametrize("labelled", [True, False])
def test_a_comparison_passes_test_images_once_through_parents_averages_and_child(data: DataSet, labelled: bool) -> None:
    parents = digits_parents("a", "b") if labelled else small_parents()
    result = fuse(
        parents, {"refit": "none", "teach.head": "always" if labelled else "none"}, calibration_loader(data, 60)
    )
    test = Loader(data.test, data.preprocessing, batch_size=250)
    with runs_counted(type(parents[0]), 250) as calls:
        found = (compare if labelled else compare_agreement)(result, test)
    assert len(found.heads) == 2
    assert (found.teacher is not None) == labelled
    assert len(calls) == 5 * len(test)
