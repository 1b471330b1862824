"""The Gauss-Newton step against dense matrices, on any architecture, and only where it helps."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from digits_parents import digits_parents
from torch import nn
from torch.func import functional_call

from depfuse.data import Loader, Split, calibration_loader, load_data
from depfuse.data.preprocessing import Preprocessing
from depfuse.ensemble.targets import TEMPERATURE
from depfuse.errors import RecipeError
from depfuse.networks.running import evaluating
from depfuse.refit.second_order.gauss_newton import _flatten, _Search, _split, gauss_newton_step
from depfuse.renorm import reset_keeping_function
from tests.divergences import slope


def images(count: int, size: int = 4, channels: int = 1, kind: type[Loader] = Loader) -> Loader:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    preprocessing = Preprocessing(mean=(0.5,) * channels, std=(0.3,) * channels)
    return kind(Split(pixels, torch.zeros(count, dtype=torch.int64)), preprocessing, batch_size=50)


class Attention(nn.Module):
    """One head over the rows of an image, with a bare parameter and a branch on a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.project = nn.Linear(4, 24)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x[:, 0]).chunk(3, -1)
        return self.head((self.scale * F.scaled_dot_product_attention(q, k, v)).mean(1))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Tanh(), nn.Linear(3, 4)).double().eval()


def other(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).double().eval()


def dense(work: _Search, model: nn.Module, free: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """J^T H J / n and J^T g / n, written out."""
    matrix, gradient, count = 0.0, 0.0, 0
    for inputs, target in work.views:
        flat = _flatten(free).requires_grad_(True)

        def logits(vector, inputs=inputs):
            return functional_call(model, _split(vector, free), (inputs,))

        with torch.enable_grad():
            jacobian = torch.autograd.functional.jacobian(logits, flat)
        z = logits(flat.detach())
        p = (z / TEMPERATURE).softmax(1)
        curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        matrix = matrix + torch.einsum("nci,ncd,ndj->ij", jacobian, curvature, jacobian)
        gradient = gradient + torch.einsum("nci,nc->i", jacobian, slope(z, target.to(z)))
        count += len(inputs)
    return matrix / count, gradient / count


class InDouble(Loader):
    """Images prepared in float64, as the matrices that a step is compared with are."""

    def _prepared(self, images: torch.Tensor, *, channels_last: bool = False) -> torch.Tensor:
        return super()._prepared(images, channels_last=channels_last).double()


class Scaled(_Search):
    """A search whose scales are given."""

    scale: torch.Tensor

    def _scales(self, *_: object) -> torch.Tensor:
        return self.scale


def test_products_and_steps_are_those_of_the_dense_matrix():
    model, teacher = small(), other()
    with torch.no_grad(), evaluating(model):
        work = Scaled(model, teacher, images(80, kind=InDouble), None, 60, 0)
        work.views = [(x, t.double()) for x, t in work.views]
        free = work._free(0)
        scale = torch.rand(sum(t.numel() for t in free.values()), dtype=torch.float64) + 0.5
        matrix, gradient = dense(work, model, free)
        vector = torch.randn_like(scale)
        expected = scale * (matrix @ (scale * vector))
        torch.testing.assert_close(work._product(free, work.views, scale, vector), expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(work._product(free, work.views, scale, None), scale * gradient, atol=1e-6, rtol=1e-5)
        work.scale = scale  # with as many iterations as there are parameters, the step is exact
        for damping, step in work._steps(free, work.views, len(scale)):
            scaled = scale[:, None] * matrix * scale + damping * torch.eye(len(scale), dtype=torch.float64)
            exact = -scale * torch.linalg.solve(scaled, scale * gradient)
            torch.testing.assert_close(_flatten(step), exact, atol=1e-5, rtol=1e-3)


def test_scales_even_out_the_diagonal():
    model = small()
    with torch.no_grad(), evaluating(model):
        work = _Search(model, other(), images(140, kind=InDouble), None, 120, 0)
        free = work._free(0)
        scale = work._scales(free, work.views)
        matrix, _ = dense(work, model, free)
        for part in _split((scale**2) * matrix.diagonal(), free).values():
            assert 0.3 < float(part.mean()) < 3.0


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_a_step_comes_closer_to_the_teacher(name):
    torch.manual_seed(0)
    model = Attention() if name == "attention" else small().float()
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    before = copy.deepcopy(model.state_dict())
    done = gauss_newton_step(model, teacher, images(400), views=300)
    assert done.layers is not None
    assert done.after < 0.5 * done.before + 0.5 * entropy(teacher, images(400))
    assert any(not torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def entropy(teacher: nn.Module, loader: Loader) -> float:
    """Least cross-entropy that there is under the teacher."""
    with torch.no_grad():
        p = torch.cat([teacher(x).softmax(1) for x, _ in loader])
    return float(-(p * p.log()).sum(1).mean())


def test_a_network_that_is_its_teacher_stays_as_it_is():
    model = small().float()
    before = copy.deepcopy(model.state_dict())
    done = gauss_newton_step(model, copy.deepcopy(model), images(100), views=60)
    assert done.layers is None
    assert done.after == done.before
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_resnet_that_took_a_step_agrees_better_and_repeats_bit_for_bit():
    nets = digits_parents(*"ab")
    loader = calibration_loader(load_data("digits"), 300)
    children = [copy.deepcopy(nets[0]) for _ in range(2)]
    done = [gauss_newton_step(child, nets[1], loader, views=200, iterations=3) for child in children]
    assert done[0] == done[1]
    assert done[0].after < done[0].before
    pairs = zip(children[0].state_dict().values(), children[1].state_dict().values(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)
    assert not any(module.training for module in children[0].modules())


def test_too_few_images_are_refused():
    with pytest.raises(RecipeError, match="needs calibration images"):
        gauss_newton_step(small().float(), other().float(), images(1))


def test_settled_statistics_are_true_and_the_function_stays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 2), nn.BatchNorm2d(4))
    with torch.no_grad():
        for layer in (model[1], model[4]):
            layer.weight.normal_()
            layer.bias.normal_()
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    model.double().eval()
    loader = images(90)
    inputs = torch.cat([x for x, _ in loader]).double()

    class Doubled:
        def __iter__(self):
            return ((x.double(), y) for x, y in loader)

    before = model(inputs)
    reset_keeping_function(model, Doubled())
    torch.testing.assert_close(model(inputs), before)
    given = model[0](inputs)
    torch.testing.assert_close(model[1].running_mean, given.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, given.var((0, 2, 3)))
