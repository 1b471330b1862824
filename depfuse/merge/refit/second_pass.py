"""A second pass over all layers at once: natural-gradient steps towards the ensemble's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from depfuse.data.augment import Augmentation
from depfuse.data.loader import Loader
from depfuse.merge.refit.folded import Folded, Teacher, weight_and_shift
from depfuse.merge.refit.graph import State
from depfuse.merge.refit.rows import Window
from depfuse.merge.refit.streams import Streams
from depfuse.merge.refit.units import Unit
from depfuse.running import bfloat16_pays
from depfuse.teaching import divergence, drawn, slope

PER_STEP = 125
MOST_ROWS = 2**15
DAMPING = 1e-3
TRUST = 0.024
MOMENTUM = 0.9
HELD_OUT = 0.125
REFRESHED = 64
COMPARED = 16
NOTHING = 1e-5  # a divergence that is rounding only

Batch = tuple[Tensor, Tensor, Sequence[Tensor]]
"""Images, the ensemble's logits for them, and what the streams shall carry."""


class SecondPass:
    r"""Brings the child's logits nearer to the ensemble's (`teaching.divergence`), and its streams to the parents'.

    Layer by layer solving cannot know what later layers make of an error. Here every unit's weight moves by
    :math:`-(A + \sqrt\lambda\pi)^{-1} \nabla_W (\Gamma + \sqrt\lambda/\pi)^{-1}`, where A is the Gram matrix of its
    inputs and :math:`\Gamma` that of the derivatives by its outputs of a class drawn from the child's own probabilities
    (Martens & Grosse 2015; for convolutions Grosse & Martens 2016, section 3). A step sees few images, and most of it
    is chance: each is so long that the model of the loss changes by a share of what it was at first (Ba et al.
    2017, section 5), which is `TRUST` over the number of units, since the model does not know how they act together,
    and more by the root of what the streams add; shorter and shorter towards the end. A running mean of such steps is
    taken.

    Parameters
    ----------
    folded
        The network, and what may change of it: its units.
    state
        The network's tensors; those of the units are changed in place.
    teacher
        The ensemble.
    streams
        What the child shall carry besides.
    calibration
        Unlabelled images; the last `HELD_OUT` of them no step sees.
    augment
        What may happen to an image each time it is drawn for a step.
    """

    def __init__(
        self,
        folded: Folded,
        state: dict[str, Tensor],
        teacher: Teacher,
        streams: Streams,
        calibration: Loader,
        augment: Augmentation,
        seed: int,
    ) -> None:
        self.folded, self.state, self.teacher = folded, state, teacher
        self.streams, self.augment = streams, augment
        self.windows = {unit: Window.of(unit.node) for unit in folded.units}
        self._loader = calibration
        self._size = calibration.count // len(calibration)
        held = max(1, round(HELD_OUT * calibration.count / self._size)) * self._size
        self._held = torch.arange(calibration.count - held, calibration.count)
        self._seen = calibration.count - held
        self._order = torch.zeros(0, dtype=torch.int64)
        self._generator = torch.Generator().manual_seed(seed)
        self._fast = bfloat16_pays(calibration.device)

    def run(self, steps: int) -> None:
        """Take some steps, and keep the weights after which the images that no step has seen are fitted best."""
        if self._seen < self._size:
            return
        rest = self._taught(self._images(self._held))
        best = maps = self.folded.maps(self.state)
        lowest = self._loss(maps, rest)
        first = lowest / len(self._held)
        if first < NOTHING:
            return
        trusted = TRUST / len(self.folded.units) * first * (1 + self.streams.weight) ** 0.5
        change = {key: torch.zeros_like(tensor) for key, tensor in maps.items()}
        for step in range(steps):
            chosen = self._draw(PER_STEP)
            if step % REFRESHED == 0:
                factors = self._factors(maps, chosen)
            gradient = self._gradient(maps, chosen, first)
            direction = self._preconditioned(gradient, factors)
            power = -sum(float((gradient[key].double() * direction[key]).sum()) for key in maps)
            length = (trusted / max(power, 1e-30)) ** 0.5 * (1 - step / steps)
            for key in maps:
                change[key] = MOMENTUM * change[key] + (1 - MOMENTUM) * length * direction[key]
            maps = {key: tensor + change[key] for key, tensor in maps.items()}
            if step % COMPARED == COMPARED - 1 or step == steps - 1:
                loss = self._loss(maps, rest)
                if loss < lowest:
                    best, lowest = maps, loss
        self.folded.write(best, self.state)

    def _images(self, numbers: Tensor, augment: Augmentation | None = None) -> list[Tensor]:
        """Images by number, in batches of the program's size."""
        parts = numbers.tensor_split(max(1, len(numbers) // self._size))
        return [self._loader.prepared(part, augment, self._generator, channels_last=True) for part in parts]

    def _draw(self, count: int) -> list[Batch]:
        """Images for a step with the ensemble's logits; all have been drawn before one is drawn again."""
        count = min(max(1, count // self._size) * self._size, self._seen // self._size * self._size)
        if len(self._order) < count:
            self._order = torch.randperm(self._seen, generator=self._generator)
        chosen, self._order = self._order[:count], self._order[count:]
        with self._quick():
            return self._taught(self._images(chosen, self.augment))

    def _taught(self, batches: Sequence[Tensor]) -> list[Batch]:
        found: list[Batch] = []
        for images in batches:
            logits, values = self.teacher.watched(images, self.streams.nodes)
            found.append((images, logits, self.streams.wanted(values)))
        return found

    def _quick(self) -> torch.autocast:
        return torch.autocast(self._loader.device.type, torch.bfloat16, enabled=self._fast)

    def _loss(self, maps: State, batches: Sequence[Batch]) -> float:
        losses = [divergence(self.folded.run(maps, self.state, images)[0], logits) for images, logits, _ in batches]
        return float(torch.stack(losses).sum())

    def _gradient(self, maps: State, batches: Sequence[Batch], loss: float) -> dict[str, Tensor]:
        """Of the mean over images; `loss` says how much the streams count, see `Streams.pulls`."""
        total = {key: torch.zeros_like(tensor) for key, tensor in maps.items()}
        with torch.enable_grad(), self._quick():
            for images, logits, wanted in batches:
                leaves = {key: tensor.clone().requires_grad_(True) for key, tensor in maps.items()}
                output, values = self.folded.run(leaves, self.state, images, self.streams.nodes)
                pulls = [slope(output.detach().float(), logits), *self.streams.pulls(values, wanted, loss)]
                outputs = [output, *values]
                pulls = [pull.to(one) for pull, one in zip(pulls, outputs, strict=True)]
                found = torch.autograd.grad(outputs, list(leaves.values()), pulls)
                for key, gradient in zip(leaves, found, strict=True):
                    total[key] += gradient
        count = sum(len(images) for images, *_ in batches)
        return {key: gradient / count for key, gradient in total.items()}

    def _factors(self, maps: State, batches: Sequence[Batch]) -> dict[Unit, tuple[Tensor, Tensor]]:
        """The two factors of every unit's curvature, damped."""
        inputs: dict[Unit, Tensor] = {}
        outputs: dict[Unit, Tensor] = {}
        units = self.folded.units
        nodes = [*(unit.end for unit in units), *(unit.input for unit in units)]
        for images, *_ in batches:
            with torch.enable_grad(), self._quick():
                leaves = {key: tensor.clone().requires_grad_(True) for key, tensor in maps.items()}
                output, values = self.folded.run(leaves, self.state, images, nodes)
                probe = drawn(output.detach().float(), self._generator)
                gradients = torch.autograd.grad(output, values[: len(units)], probe.to(output))
            for unit, gradient, value in zip(units, gradients, values[len(units) :], strict=True):
                window = self.windows[unit]
                rows = window.outputs(gradient.float())
                part = (rows.mT @ rows).double() / (len(images) * len(batches))
                outputs[unit] = outputs[unit] + part if unit in outputs else part
                part = self._gram(unit, value.detach().float()) * (window.positions / len(batches))
                inputs[unit] = inputs[unit] + part if unit in inputs else part
        # Both factors get the same share of the damping, each in its own units.
        return {unit: (_damped(inputs[unit]), _damped(outputs[unit] / self.windows[unit].positions)) for unit in units}

    def _gram(self, unit: Unit, value: Tensor) -> Tensor:
        """Mean Gram matrix (G, K, K) of what a unit takes in at one place, a last row and column for the constant."""
        window = self.windows[unit]
        places = None
        if window.positions * len(value) > MOST_ROWS:
            count = max(1, MOST_ROWS // len(value))
            places = torch.randperm(window.positions, generator=self._generator)[:count].sort().values
        rows = window.inputs(value, places)
        if weight_and_shift(unit)[1] is not None:
            rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
        return (rows.mT @ rows).double() / rows.shape[1]

    def _preconditioned(
        self, gradient: Mapping[str, Tensor], factors: Mapping[Unit, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        direction: dict[str, Tensor] = {}
        for unit in self.folded.units:
            window = self.windows[unit]
            weight, shift = weight_and_shift(unit)
            step = window.matrix(gradient[weight]).double()
            if shift is not None:
                step = torch.cat([step, gradient[shift].double().reshape(window.groups, 1, -1)], 1)
            inputs, outputs = factors[unit]
            step = -torch.cholesky_solve(torch.cholesky_solve(step, inputs).mT, outputs).mT
            if shift is not None:
                direction[shift] = step[:, -1].reshape(-1).to(gradient[shift])
                step = step[:, :-1]
            direction[weight] = window.weight(step, gradient[weight].shape).to(gradient[weight])
        return direction


def _damped(factor: Tensor) -> Tensor:
    """Cholesky factors (G, K, K) of a matrix with some of its mean variance added."""
    power = factor.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-20)
    damping = DAMPING**0.5 * power * torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
    found: Tensor = torch.linalg.cholesky(factor + damping)
    return found
