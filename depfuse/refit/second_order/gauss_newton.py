r"""Take a Gauss-Newton step of a whole network towards its teacher's logits, for any architecture.

Near its weights :math:`\theta` a network's logits are linear in what is added to them:
:math:`z(\theta + \delta) \approx z(\theta) + J\delta`. The smallest example is a linear layer, where that is exact and
the step is a regression on the teacher's logits. Elsewhere the step
:math:`\delta = -(J^\top H J / n + \lambda I)^{-1} J^\top g / n`, with slope g and curvature H of the divergence from
the teacher (`ensemble.targets`), minimises it as far as the network is linear (Schraudolph 2002; Martens 2010). The
matrix is never written out: Lanczos' iteration needs its products with vectors only, and the small tridiagonal matrix
that it gives holds the steps for all dampings :math:`\lambda` at once (Golub & Van Loan 2013, section 10.1). So damping
and length are chosen by the loss on held-out images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vjp
from torch.overrides import TorchFunctionMode

from depfuse.data.augment import mix
from depfuse.data.augmentation import Augmentation
from depfuse.data.inputs import count_samples
from depfuse.data.loader import Loader
from depfuse.ensemble.targets import TEMPERATURE
from depfuse.errors import RecipeError
from depfuse.networks.copying import unwrap
from depfuse.networks.derivatives import forward_derivative
from depfuse.networks.forward import in_layout, run_with
from depfuse.networks.memory_format import choose_layout, differentiable
from depfuse.networks.running import evaluating
from depfuse.networks.stages import stages_of
from depfuse.tasks.outputs import task_by_shape
from depfuse.tasks.task import Task

VIEWS = 1000  # augmented views of the images that the curvature is taken from
ITERATIONS = 5  # of Lanczos, each with a product of the curvature over all views
HELD_OUT = 0.125  # share of the images that damping and length are chosen on
AT_ONCE = 125  # images differentiated at a time
# Share of the views and of the iterations by which the free layers are chosen.
PROBED = 1 / 3
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # to choose from, in units of the preconditioned curvature
LENGTHS = (0.5, 1.0)  # to choose from, as shares of the step
PROBES = 4  # random directions per image that the preconditioner is estimated by

Vector = Mapping[str, Tensor]
"""One tensor per free parameter."""
Batch = tuple[Tensor, Tensor]
"""Prepared images and the teacher's logits for them."""


@dataclass(frozen=True)
class GaussNewtonStep:
    """The result of a step.

    Attributes
    ----------
    before, after
        Cross-entropy (nats) of the network's probabilities under the teacher's, on held-out images; mean
        squared error where the outputs are no class scores.
    layers
        `last stage` or `all`: which were free; None where no step lowered it, and nothing was changed.
    damping
        :math:`\\lambda`; the parameters are scaled so that the mean of the matrix's diagonal over each tensor is one.
    """

    before: float
    after: float
    layers: str | None = None
    damping: float | None = None


def gauss_newton_step(
    model: nn.Module,
    teacher: Callable[[Tensor], Tensor],
    calibration: Loader,
    *,
    augment: Augmentation | None = None,
    views: int = VIEWS,
    iterations: int = ITERATIONS,
    seed: int = 0,
    task: Task | None = None,
) -> GaussNewtonStep:
    """Take one Gauss-Newton step of a network, in place, towards a teacher's logits on images without labels.

    Either the weights of the last stage (`stages_of`) with the head are free, or all, whichever has the lower loss in a
    short trial; of the steps of all dampings and lengths the one is taken with the least cross-entropy under the
    teacher on the last eighth of the images. Memory does not grow with the number of images. BatchNorm keeps its
    statistics.

    Parameters
    ----------
    model
        Any network; run in evaluation mode.
    teacher
        Logits (N, C) for prepared images.
    calibration
        Unlabelled training images.
    augment
        Augmentation of each image each time it is drawn; images are mixed with others, too (`mix`). None for neither.
    views
        Number of images that the step sees; once all have been drawn, they are drawn again.
    iterations
        Number of products with the matrix.
    task
        What the outputs mean; by their shape where None.

    Returns
    -------
    GaussNewtonStep
        Nothing changes where no step lowers the loss.

    Raises
    ------
    RecipeError
        There are fewer than two images.
    """
    if calibration.count < 2:
        raise RecipeError(
            f"a Gauss-Newton step needs calibration images, not {calibration.count}: give at least 100, better 2000"
        )
    with torch.no_grad(), evaluating(model), _PlainAttention(), differentiable(calibration.device):
        work = _Search(unwrap(model), teacher, calibration, augment, views, seed, task)
        return work.run(iterations)


class _PlainAttention(TorchFunctionMode):
    """Compute attention by matrix products, in this thread: the fused kernels have no forward derivative."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch._scaled_dot_product_attention_math(*args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))


class _Search:
    """Search for one step; vectors are mappings from the free parameters' names."""

    def __init__(
        self,
        model: nn.Module,
        teacher: Callable[[Tensor], Tensor],
        calibration: Loader,
        augment: Augmentation | None,
        views: int,
        seed: int,
        task: Task | None = None,
    ) -> None:
        self.model, self.teacher, self.loader = model, teacher, calibration
        self._generator = torch.Generator().manual_seed(seed)
        held = min(calibration.count - 1, max(1, round(HELD_OUT * calibration.count)))
        seen = calibration.count - held
        example = calibration.example()
        self._layout = choose_layout(model, example)[0]
        rounds = -(-views // seen)
        order = torch.cat([torch.randperm(seen, generator=self._generator) for _ in range(rounds)])[:views]
        self.views = self._batches(order, augment, mixed=augment is not None)
        self.rest = self._batches(torch.arange(seen, calibration.count), augment)
        self._stages, self._count = stages_of(model, example)
        self._task = task or task_by_shape(self.rest[0][1])

    def run(self, iterations: int) -> GaussNewtonStep:
        """Choose the free layers, then take the best step."""
        before = self._loss({})
        layers, free = self._choose_layers(iterations)
        after, moved, damping = self._best(free, self.views, iterations)
        if not after < before:
            return GaussNewtonStep(before, before)
        parameters = dict(self.model.named_parameters())
        for key, tensor in moved.items():
            parameters[key].copy_(tensor)
        return GaussNewtonStep(before, after, layers, damping)

    def _choose_layers(self, iterations: int) -> tuple[str, dict[str, Tensor]]:
        """Choose the free layers: those with the lower loss by some of the views, in some of the iterations."""
        whole, last = self._free(0), self._free(self._count - 1)
        if not last or len(last) == len(whole):
            return "all", whole
        few, short = self.views[: max(1, round(PROBED * len(self.views)))], max(1, round(PROBED * iterations))
        better = self._best(last, few, short)[0] <= self._best(whole, few, short)[0]
        return ("last stage", last) if better else ("all", whole)

    def _batches(self, numbers: Tensor, augment: Augmentation | None, mixed: bool = False) -> list[Batch]:
        """Augment and prepare images by number, with the teacher's logits."""
        batches = []
        for part in torch.split(numbers, AT_ONCE):
            images = self.loader.prepared(part, augment, self._generator)
            images = in_layout(images, self._layout)
            images = mix(images, self._generator) if mixed else images
            batches.append((images, self.teacher(images).float()))
        return batches

    def _free(self, stage: int) -> dict[str, Tensor]:
        """Copy the parameters of the layers from a stage on."""
        return {
            name: parameter.detach().clone()
            for name, parameter in self.model.named_parameters()
            if parameter.is_floating_point() and self._stages.get(name.rpartition(".")[0], 0) >= stage
        }

    def _logits(self, free: Vector, images: Tensor) -> Tensor:
        output: Tensor = run_with(self.model, free, images)
        return output

    def _loss(self, free: Vector) -> float:
        """Compute the mean cross-entropy under the teacher on the held-out images, or the squared error."""
        total = 0.0
        for images, target in self.rest:
            outputs = self._logits(free, images).float()
            total += float(self._task.losses(outputs, self._task.predictions(target)).sum())
        return total / sum(count_samples(images) for images, _ in self.rest)

    def _best(self, free: Vector, views: list[Batch], iterations: int) -> tuple[float, dict[str, Tensor], float]:
        """Find the step with the least loss: the loss, the parameters after it, and the damping."""
        least, best, best_damping = float("inf"), dict(free), 0.0
        for damping, step in self._steps(free, views, iterations):
            for length in LENGTHS:
                moved = {name: free[name] + length * step[name] for name in free}
                loss = self._loss(moved)
                if loss < least:
                    least, best, best_damping = loss, moved, damping
        return least, best, best_damping

    def _steps(self, free: Vector, views: list[Batch], iterations: int) -> Iterator[tuple[float, dict[str, Tensor]]]:
        """Yield each damping with its step, from one Lanczos iteration."""
        if not free:
            return
        scale = self._scales(free, views)
        start = self._product(free, views, scale, None)
        length = start.norm()
        if not float(length) > 0:
            return
        basis = [start / length]
        diagonal: list[Tensor] = []
        beside: list[Tensor] = []
        for _ in range(iterations):
            image = self._product(free, views, scale, basis[-1])
            diagonal.append(basis[-1] @ image)
            for vector in (*basis, *basis):  # twice is enough (Parlett 1998, section 6.9)
                image = image - (vector @ image) * vector
            rest = image.norm()
            if not float(rest) > 1e-6 * float(diagonal[0]):
                break
            beside.append(rest)
            basis.append(image / rest)
        size = len(diagonal)
        small = torch.diag(torch.stack(diagonal))
        for number in range(size - 1):
            small[number, number + 1] = small[number + 1, number] = beside[number]
        values, vectors = torch.linalg.eigh(small.double())
        directions = torch.stack(basis[:size], 1)
        for damping in DAMPINGS:
            weight = vectors @ (vectors[0] / (values.clamp_min(0.0) + damping)) * length
            yield damping, _split(-scale * (directions @ weight.to(directions)), free)

    def _product(self, free: Vector, views: list[Batch], scale: Tensor, vector: Tensor | None) -> Tensor:
        """Multiply the scaled matrix by a vector; compute the scaled gradient where there is none."""
        moved = None if vector is None else _split(scale * vector, free)
        total = torch.zeros_like(scale)
        for images, target in views:

            def logits(parameters: Vector, images: Tensor = images) -> Tensor:
                return self._logits(parameters, images)

            output, pulled = vjp(logits, free)[:2]
            if moved is None:
                pull = self._task.slope(output, target, TEMPERATURE)
            else:
                change = forward_derivative(logits, free, moved)
                pull = self._task.curvature_product(change, output, TEMPERATURE)
            total += _flatten(pulled(pull)[0])
        return scale * total / sum(count_samples(images) for images, _ in views)

    def _scales(self, free: Vector, views: list[Batch]) -> Tensor:
        """Scale the parameters so that the mean of the matrix's diagonal over each tensor is one.

        The diagonal is estimated with random vectors that have the curvature as covariance, on some of the images.
        """
        squares = {name: torch.zeros((), dtype=torch.float32, device=tensor.device) for name, tensor in free.items()}
        images, _ = views[0]
        output, pulled = vjp(lambda parameters: self._logits(parameters, images), free)[:2]
        for _ in range(PROBES):
            for name, gradient in pulled(self._task.sample(output, self._generator, TEMPERATURE))[0].items():
                squares[name] = squares[name] + gradient.square().mean() / (PROBES * count_samples(images))
        scales = {name: square.clamp_min(1e-20).rsqrt() for name, square in squares.items()}
        return torch.cat([scales[name].expand(tensor.numel()) for name, tensor in free.items()])


def _split(vector: Tensor, free: Vector) -> dict[str, Tensor]:
    parts = torch.split(vector, [tensor.numel() for tensor in free.values()])
    return {name: part.reshape(tensor.shape) for (name, tensor), part in zip(free.items(), parts, strict=True)}


def _flatten(vector: Vector) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in vector.values()])
