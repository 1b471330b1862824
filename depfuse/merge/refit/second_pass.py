"""A second pass over all layers at once: natural-gradient steps towards the ensemble's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from depfuse.merge.refit.graph import Program, State, Values
from depfuse.merge.refit.rows import Window
from depfuse.merge.refit.units import Unit

PER_STEP = 500
DAMPING = 1e-3
TRUST = 0.3
HELD_OUT = 0.125
REFRESHED = 8


class SecondPass:
    r"""Lowers :math:`\tfrac12 \|z(x) - t(x)\|^2` of the child's logits z and the ensemble's t, each without its mean.

    Layer by layer solving cannot know what later layers make of an error. Here every unit's weight moves by
    :math:`-(A + \sqrt\lambda\pi)^{-1} \nabla_W (\Gamma + \sqrt\lambda/\pi)^{-1}`, where A is the Gram matrix of its
    inputs and :math:`\Gamma` that of the derivatives of the logits by its outputs (Martens & Grosse 2015; for
    convolutions Grosse & Martens 2016, section 3). How far to go along this direction and the one before follows from
    the Gauss-Newton model of the loss along both (2015, section 7).

    Parameters
    ----------
    program, units
        The network, and what may change of it: units with a weight.
    state
        The child's tensors, changed in place; BatchNorm statistics are taken as constants.
    grams
        Unit -> Gram matrix (G, K, K) of its inputs at one place, a last row and column for the constant.
    """

    def __init__(
        self, program: Program, units: Sequence[Unit], state: dict[str, Tensor], grams: Mapping[Unit, Tensor], seed: int
    ) -> None:
        self.program, self.state, self.grams = program, state, grams
        self.units = [unit for unit in units if unit.weight is not None]
        self.windows = {unit: Window.of(unit.node) for unit in self.units}
        self._generator = torch.Generator().manual_seed(seed)

    def run(self, batches: Sequence[Tensor], targets: Sequence[Tensor], steps: int) -> None:
        """Take some steps, and keep the weights after which the images that no step has seen are fitted best.

        Parameters
        ----------
        batches
            Images, in batches of the program's size.
        targets
            The ensemble's logits for each.
        """
        held = max(1, round(HELD_OUT * len(batches)))
        if len(batches) < 2:
            return
        seen = list(zip(batches, targets, strict=True))[:-held]
        rest = list(zip(batches, targets, strict=True))[-held:]
        keys = [key for unit in self.units for key in self._keys(unit)]
        parameters = {key: self.state[key].clone() for key in keys}
        best, lowest = parameters, self._loss(parameters, rest)
        previous: dict[str, Tensor] | None = None
        size = max(1, PER_STEP // max(1, len(batches[0])))
        order: list[int] = []
        for step in range(steps):
            if len(order) < size:
                order = torch.randperm(len(seen), generator=self._generator).tolist()
            chosen, order = [seen[number] for number in order[:size]], order[size:]
            if step % REFRESHED == 0:
                factors = self._factors(parameters, [images for images, _ in chosen[: max(1, size // 2)]])
            gradient = self._gradient(parameters, chosen)
            directions = [self._preconditioned(gradient, factors)]
            if previous is not None:
                directions.append(previous)
            lengths = self._lengths(parameters, gradient, directions, chosen[: max(1, size // 2)])
            previous = {
                key: sum(length * direction[key] for length, direction in zip(lengths, directions, strict=True))  # type: ignore[misc]
                for key in keys
            }
            parameters = {key: parameters[key] + previous[key] for key in keys}
            loss = self._loss(parameters, rest)
            if loss < lowest:
                best, lowest = parameters, loss
        for key, tensor in best.items():
            self.state[key].copy_(tensor)

    def _keys(self, unit: Unit) -> list[str]:
        shift = unit.bias if unit.norm is None else unit.norm.bias
        return [key for key in (unit.weight, shift) if key is not None]

    def _scale(self, unit: Unit) -> Tensor:
        """What the BatchNorm multiplies the layer's outputs by (C,)."""
        if unit.norm is None:
            return torch.ones((), device=self.state[unit.keys[0]].device).expand(self.state[unit.keys[0]].shape[0])
        assert unit.norm.weight is not None
        return self.state[unit.norm.weight] / (self.state[unit.norm.variance] + unit.norm.epsilon).sqrt()

    def _forward(self, parameters: State, images: Tensor, kept: Sequence[Unit] = ()) -> tuple[Tensor, list[Tensor]]:
        state = {**self.state, **parameters}
        values: Values = {self.program.images: images}
        ends = {unit.end: number for number, unit in enumerate(kept)}
        found: list[Tensor] = [images] * len(kept)
        remaining = {node: len(node.users) for node in self.program.nodes}
        for node in self.program.nodes:
            values[node] = self.program.call(node, state, values)
            if node in ends:
                found[ends[node]] = values[node]
            for source in node.all_input_nodes:
                if source in remaining:
                    remaining[source] -= 1
                    if remaining[source] == 0 and source is not self.program.output:
                        del values[source]
        return values[self.program.output], found

    def _loss(self, parameters: State, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
        losses = [_residual(self._forward(parameters, images)[0], target).square().sum() for images, target in batches]
        return float(torch.stack(losses).sum())

    def _gradient(self, parameters: State, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        total = {key: torch.zeros_like(tensor) for key, tensor in parameters.items()}
        with torch.enable_grad():
            for images, target in batches:
                leaves = {key: tensor.clone().requires_grad_(True) for key, tensor in parameters.items()}
                output, _ = self._forward(leaves, images)
                loss = 0.5 * _residual(output, target).square().sum()
                found = torch.autograd.grad(loss, list(leaves.values()))
                for key, gradient in zip(leaves, found, strict=True):
                    total[key] += gradient
        count = sum(len(images) for images, _ in batches)
        return {key: gradient / count for key, gradient in total.items()}

    def _factors(self, parameters: State, batches: Sequence[Tensor]) -> dict[Unit, tuple[Tensor, Tensor]]:
        """The two factors of every unit's curvature, damped."""
        sums: dict[Unit, Tensor] = {}
        for images in batches:
            with torch.enable_grad():
                leaves = {key: tensor.clone().requires_grad_(True) for key, tensor in parameters.items()}
                output, ends = self._forward(leaves, images, self.units)
                signs = torch.randint(0, 2, output.shape, generator=self._generator).to(output) * 2 - 1
                probe = (output * (signs - signs.mean(-1, keepdim=True))).sum()
                gradients = torch.autograd.grad(probe, ends)
            for unit, gradient in zip(self.units, gradients, strict=True):
                rows = self.windows[unit].outputs(gradient)
                part = (rows.mT @ rows).double() / (rows.shape[1] * len(batches))
                sums[unit] = sums[unit] + part if unit in sums else part
        factors = {}
        for unit, outputs in sums.items():
            inputs = self.grams[unit] * self.windows[unit].positions
            powers = [factor.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-20) for factor in (inputs, outputs)]
            # Both factors get the same share of the damping, each in its own units.
            factors[unit] = (
                _damped(inputs, DAMPING**0.5 * powers[0]),
                _damped(outputs, DAMPING**0.5 * powers[1]),
            )
        return factors

    def _preconditioned(
        self, gradient: Mapping[str, Tensor], factors: Mapping[Unit, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        direction: dict[str, Tensor] = {}
        for unit in self.units:
            window, scale = self.windows[unit], self._scale(unit)
            keys = self._keys(unit)
            inverse = torch.where(scale.abs() > 1e-6, 1.0 / scale, torch.zeros_like(scale))
            shape = gradient[keys[0]].shape
            per_row = inverse.reshape(-1, *[1] * (len(shape) - 1))
            step = window.matrix(gradient[keys[0]] * per_row).double()
            if len(keys) > 1:
                step = torch.cat([step, gradient[keys[1]].double().reshape(window.groups, 1, -1)], 1)
            inputs, outputs = factors[unit]
            step = -torch.cholesky_solve(torch.cholesky_solve(step, inputs).mT, outputs).mT
            if len(keys) > 1:
                direction[keys[1]] = step[:, -1].reshape(-1).to(gradient[keys[1]])
                step = step[:, :-1]
            direction[keys[0]] = window.weight(step, shape).to(per_row) * per_row
        return direction

    def _lengths(
        self,
        parameters: State,
        gradient: Mapping[str, Tensor],
        directions: Sequence[Mapping[str, Tensor]],
        batches: Sequence[tuple[Tensor, Tensor]],
    ) -> list[float]:
        """How far to go along each direction, by the Gauss-Newton model of the loss."""
        size = sum(float(tensor.square().sum()) for tensor in parameters.values()) ** 0.5
        slopes, changes = [], []
        plain = [self._forward(parameters, images)[0] for images, _ in batches]
        for direction in directions:
            length = sum(float(tensor.square().sum()) for tensor in direction.values()) ** 0.5
            probe = 1e-3 * size / max(length, 1e-30)
            moved = {key: tensor + probe * direction[key] for key, tensor in parameters.items()}
            outputs = [self._forward(moved, images)[0] for images, _ in batches]
            change = torch.cat([_residual(after, before) for after, before in zip(outputs, plain, strict=True)])
            changes.append(change.double().reshape(-1) / probe)
            slopes.append(sum(float((gradient[key].double() * direction[key]).sum()) for key in gradient))
        stacked = torch.stack(changes)
        curvature = stacked @ stacked.T / sum(len(images) for images, _ in batches)
        curvature = (
            curvature + TRUST * torch.diag(curvature.diagonal()) + 1e-12 * torch.eye(len(curvature)).to(curvature)
        )
        slope = torch.tensor(slopes, dtype=curvature.dtype, device=curvature.device)
        found: list[float] = (-torch.linalg.solve(curvature, slope)).tolist()
        return found


def _residual(output: Tensor, target: Tensor) -> Tensor:
    """Difference of two logits (N, C) without its mean, which changes no probability."""
    difference = output - target
    return difference - difference.mean(-1, keepdim=True)


def _damped(factor: Tensor, amount: Tensor) -> Tensor:
    damping = amount * torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
    found: Tensor = torch.linalg.cholesky(factor + damping)
    return found
