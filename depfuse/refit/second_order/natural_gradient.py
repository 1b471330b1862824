"""Take natural-gradient steps of all layers of a network at once, towards an ensemble's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from depfuse.data.inputs import count_samples
from depfuse.ensemble.targets import TEMPERATURE
from depfuse.networks.derivatives import scalar_with
from depfuse.networks.memory_format import differentiable
from depfuse.networks.processor import bfloat16_pays
from depfuse.networks.replaying import Recording
from depfuse.refit.layerwise.rows import Window
from depfuse.refit.layerwise.streams import Streams
from depfuse.refit.program.folded import Folded, weight_and_shift
from depfuse.refit.program.units import Unit
from depfuse.refit.second_order.schedule import Schedule
from depfuse.tasks.outputs import task_by_shape
from depfuse.tasks.task import Task

PER_STEP = 125  # images per step
MOST_ROWS = 2**15  # inputs of a layer that its Gram matrices are taken from, over images and positions
DAMPING = 1e-4  # at first: its root times the mean diagonal is added to each matrix
MOMENTUM = 0.9  # of the running mean of steps
REFRESHED = 64  # steps between two updates of the matrices, whose inverses cost more than a step
REMEMBERED = 0.7  # share of the matrices that an update keeps
MORE_DAMPING = 1000.0  # factor of the damping after a rollback
MOST_DAMPING = 1.0  # limit of the damping
LESS_TRUST = 0.5  # factor of the trust after a rollback

TeacherFunction = Callable[[Tensor, float], tuple[Tensor, list[Tensor]]]
"""Images, temperature -> the teacher's logits (N, C) for them, and the targets of the network's streams."""
TargetBatch = tuple[Tensor, Tensor, Sequence[Tensor]]
"""Images, the teacher's logits for them, and the targets of the streams."""


class NaturalGradient:
    r"""Minimise the divergence of a network's logits from a teacher's, and the distance of its streams from theirs.

    Every unit's weight moves by :math:`-(A + \sqrt\lambda\pi)^{-1} \nabla_W (\Gamma + \sqrt\lambda/\pi)^{-1}`, where A
    is the Gram matrix of its inputs and :math:`\Gamma` that of the derivatives by its outputs of a class drawn from the
    network's own probabilities (Martens & Grosse 2015; for convolutions Grosse & Martens 2016, section 3). Few images
    are seen at a time, so both matrices are noisy and running means of them are used. The length of a step is such that
    the quadratic model of the loss changes by a share of the initial loss (Ba et al. 2017, section 5): `trust` over
    the number of units, since the model ignores their interaction, times the root of what the streams add. Steps have
    momentum.

    Where layers are wide, few images show little of their curvature, and where the loss is small, steps are too long.
    After `restore` they are damped more and trusted less (Levenberg-Marquardt, as in Martens & Grosse 2015, section
    6.5).

    BatchNorm is part of the layer before it and keeps its statistics.

    Parameters
    ----------
    folded
        The network, whose units change.
    state
        The network's tensors; `write` changes those of the units.
    teacher
        Gives the targets.
    streams
        The distance of the network's streams from theirs.
    generator
        Of what is drawn at random.
    trust
        See `Schedule`.
    bfloat16
        Whether gradients and targets are computed in it; where that is faster on the device, if left out.
    task
        What the outputs mean; by their shape where None.

    Attributes
    ----------
    temperature
        Of the teacher's logits and of the divergence from them, see `soften`.
    """

    def __init__(
        self,
        folded: Folded,
        state: dict[str, Tensor],
        teacher: TeacherFunction,
        streams: Streams,
        generator: torch.Generator,
        *,
        trust: float = Schedule.trust,
        bfloat16: bool | None = None,
        task: Task | None = None,
    ) -> None:
        self.folded, self.state, self.streams, self.generator = folded, state, streams, generator
        self.maps = folded.maps(state)
        self._teacher, self._task = teacher, task
        self._windows = {unit: Window.of(unit.node) for unit in folded.units}
        self._change = {key: torch.zeros_like(tensor) for key, tensor in self.maps.items()}
        self._moments: dict[Unit, tuple[Tensor, Tensor]] = {}
        self._factors: dict[Unit, tuple[Tensor, Tensor]] = {}
        self._taken = 0
        self.temperature = TEMPERATURE
        self._damping, self._trust = DAMPING, trust
        self._first: float | None = None
        self._device = next(iter(state.values())).device
        enabled = bfloat16_pays(self._device) if bfloat16 is None else bfloat16
        self._quick = torch.autocast(self._device.type, torch.bfloat16, enabled=enabled)
        self._steps, self._targets = Recording(self._device), Recording(self._device)

    def begin(self, loss: float) -> None:
        """Set the loss per image before the first step, relative to which steps and streams are scaled."""
        self._first, self.streams.weights = loss, []
        self._steps.forget()

    @property
    def begun(self) -> bool:
        """Whether the initial loss is set."""
        return self._first is not None

    def soften(self, temperature: float) -> None:
        """Change the temperature; `begin` has to be called again."""
        self.temperature, self._first = temperature, None
        self._targets.forget()

    def refresh(self) -> None:
        """Discard the running means of the curvature, which is computed anew at the next step."""
        self._taken, self._moments = 0, {}

    def with_targets(self, parts: Sequence[Tensor], *, quick: bool = False) -> list[TargetBatch]:
        """Compute the targets for batches of the program's size; `quick`: in bfloat16 where that is faster."""
        if not quick:
            return [(images, *self._teacher(images, self.temperature)) for images in parts]
        with self._quick:
            return [(images, *self._targets.run(self._taught, images)) for images in parts]

    def _taught(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self._teacher(images, self.temperature)

    def loss(self, batches: Sequence[TargetBatch]) -> float:
        """Sum the divergence of the network's logits over images."""
        losses = []
        for images, logits, _ in batches:
            outputs = self.folded.run(self.maps, self.state, images)[0]
            losses.append(self.task_of(outputs).divergence(outputs, logits, self.temperature))
        return float(torch.stack(losses).sum())

    def task_of(self, outputs: Tensor) -> Task:
        """Return what outputs (N, ...) mean."""
        return self._task or task_by_shape(outputs)

    def step(self, batches: Sequence[TargetBatch], share: float, streams: float = 1.0) -> tuple[Tensor, Tensor]:
        """Take one step, after `begin`.

        Parameters
        ----------
        batches
            What `with_targets` gave.
        share
            Factor of the step's length.
        streams
            Factor of the streams' initial weight.

        Returns
        -------
        tuple of two tensors
            The divergence before the step, summed over the images, and on how many of them the network predicts
            the ensemble's class.
        """
        assert self._first is not None
        if self._taken % REFRESHED == 0:
            self._renew_curvature(batches)
        self._taken += 1
        trusted = self._trust / len(self.folded.units) * self._first * (1 + self.streams.weight) ** 0.5
        moved: tuple[Tensor, Tensor] = self._steps.run(self._moved, batches, trusted, share, streams)
        return moved

    def _moved(
        self, batches: Sequence[TargetBatch], trusted: float, share: float, streams: float
    ) -> tuple[Tensor, Tensor]:
        """Move all weights in place, of which all stays on the device: reading a number would make it wait."""
        assert self._first is not None
        gradient, loss, alike = self._gradient(batches, self._first, streams)
        direction = self._preconditioned(gradient)
        power = -torch.stack([(gradient[key].double() * direction[key]).sum() for key in self.maps]).sum()
        length = (trusted / power.clamp_min(1e-30)).sqrt() * share
        for key, tensor in self.maps.items():
            self._change[key].mul_(MOMENTUM).add_((1 - MOMENTUM) * length * direction[key])
            tensor.add_(self._change[key])
        return loss, alike

    def restore(self, maps: Mapping[str, Tensor]) -> None:
        """Restore earlier weights, increase the damping, shorten the steps and discard the curvature."""
        for key, tensor in maps.items():
            self.maps[key].copy_(tensor)
            self._change[key].zero_()
        self._damping, self._trust = min(MOST_DAMPING, self._damping * MORE_DAMPING), self._trust * LESS_TRUST
        self.refresh()

    def write(self) -> None:
        """Write the weights into the network's tensors."""
        self.folded.write(self.maps, self.state)

    def state_dict(self) -> dict[str, object]:
        """Collect all that changes from step to step but the curvature: call `refresh` whenever this is saved."""
        return {
            "maps": copied(self.maps),
            "change": copied(self._change),
            "first": self._first,
            "weights": list(self.streams.weights),
            "generator": self.generator.get_state(),
            "damping": self._damping,
            "trust": self._trust,
            "temperature": self.temperature,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what `state_dict` gave."""
        for tensors, saved in ((self.maps, state["maps"]), (self._change, state["change"])):
            assert isinstance(saved, dict)
            for key, tensor in saved.items():
                tensors[key].copy_(tensor)
        first, weights, generator = state["first"], state["weights"], state["generator"]
        damping, trust, temperature = state["damping"], state["trust"], state["temperature"]
        assert isinstance(first, float)
        assert isinstance(weights, list)
        assert isinstance(generator, Tensor)
        assert isinstance(damping, float)
        assert isinstance(trust, float)
        assert isinstance(temperature, float)
        self._first, self.streams.weights = first, weights
        self.generator.set_state(generator)
        self._damping, self._trust, self.temperature = damping, trust, temperature
        self._steps.forget()
        self._targets.forget()
        self.refresh()

    def _gradient(
        self, batches: Sequence[TargetBatch], first: float, share: float
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Compute the mean gradient over images, their summed divergence, and how many get the teacher's class."""
        total = {key: torch.zeros_like(tensor) for key, tensor in self.maps.items()}
        losses, alike = [], []
        with torch.enable_grad(), self._quick, differentiable(self._device):
            for images, logits, wanted in batches:
                leaves = {key: tensor.clone().requires_grad_(True) for key, tensor in self.maps.items()}
                output, values = self.folded.run(leaves, self.state, images, self.streams.nodes)
                predicted = output.detach().float()
                task = self.task_of(predicted)
                losses.append(task.divergence(predicted, logits, self.temperature))
                alike.append(task.agreements(predicted, logits))
                pull = task.slope(predicted, logits, self.temperature)
                pulls = [pull, *self.streams.pulls(values, wanted, first, share)]
                outputs = [output, *values]
                pulls = [pull.to(one) for pull, one in zip(pulls, outputs, strict=True)]
                gradients = torch.autograd.grad(scalar_with(pulls, outputs), list(leaves.values()))
                for key, gradient in zip(leaves, gradients, strict=True):
                    total[key] += gradient
        count = sum(count_samples(images) for images, *_ in batches)
        mean = {key: gradient / count for key, gradient in total.items()}
        return mean, torch.stack(losses).sum(), torch.stack(alike).sum()

    def _renew_curvature(self, batches: Sequence[TargetBatch]) -> None:
        """Update the running means of the curvature by some images."""
        # The mean of all at first, then an exponential one.
        new = max(1 - REMEMBERED, 1 / (self._taken // REFRESHED + 1))
        for unit, moments in self._moments_of(batches).items():
            before = self._moments.get(unit, moments)
            inputs, outputs = (torch.lerp(old, now, new) for old, now in zip(before, moments, strict=True))
            self._moments[unit] = inputs, outputs
            factors = self._damped(unit)
            for own, factor in zip(self._factors.setdefault(unit, factors), factors, strict=True):
                own.copy_(factor)  # where a recorded step reads it

    def _damped(self, unit: Unit) -> tuple[Tensor, Tensor]:
        """Factorise a unit's curvature; both factors get the same share of the damping, each in its own units."""
        inputs, outputs = self._moments[unit]
        positions = self._windows[unit].positions
        return _factorised(inputs, self._damping), _factorised(outputs / positions, self._damping)

    def _moments_of(self, batches: Sequence[TargetBatch]) -> dict[Unit, tuple[Tensor, Tensor]]:
        """Compute the mean products of every unit's inputs, and of the derivatives by its outputs."""
        inputs: dict[Unit, Tensor] = {}
        outputs: dict[Unit, Tensor] = {}
        units = self.folded.units
        nodes = [*(unit.end for unit in units), *(unit.input for unit in units)]
        for images, *_ in batches:
            with torch.enable_grad(), self._quick, differentiable(self._device):
                leaves = {key: tensor.clone().requires_grad_(True) for key, tensor in self.maps.items()}
                output, values = self.folded.run(leaves, self.state, images, nodes)
                predicted = output.detach().float()
                probe = self.task_of(predicted).sample(predicted, self.generator, self.temperature)
                gradients = torch.autograd.grad(scalar_with([probe.to(output)], [output]), values[: len(units)])
            for unit, gradient, value in zip(units, gradients, values[len(units) :], strict=True):
                window = self._windows[unit]
                rows = window.outputs(gradient.float())
                part = (rows.mT @ rows) / (count_samples(images) * len(batches))
                outputs[unit] = outputs[unit] + part if unit in outputs else part
                part = self._gram(unit, value.detach().float()) * (window.positions / len(batches))
                inputs[unit] = inputs[unit] + part if unit in inputs else part
        return {unit: (inputs[unit], outputs[unit]) for unit in units}

    def _gram(self, unit: Unit, value: Tensor) -> Tensor:
        """Compute the mean Gram matrix (G, K, K) of a unit's input at a place, the intercept's row and column last."""
        window = self._windows[unit]
        places = None
        if window.positions * len(value) > MOST_ROWS:
            count = max(1, MOST_ROWS // len(value))
            places = torch.randperm(window.positions, generator=self.generator)[:count].sort().values
        rows = window.inputs(value, places)
        if weight_and_shift(unit)[1] is not None:
            rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
        return (rows.mT @ rows) / rows.shape[1]

    def _preconditioned(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        direction: dict[str, Tensor] = {}
        for unit in self.folded.units:
            window = self._windows[unit]
            weight, shift = weight_and_shift(unit)
            step = window.matrix(gradient[weight])
            if shift is not None:
                step = torch.cat([step, gradient[shift].reshape(window.groups, 1, -1)], 1)
            inputs, outputs = self._factors[unit]
            step = -_solved(outputs, _solved(inputs, step.to(inputs)).mT).mT
            if shift is not None:
                direction[shift] = step[:, -1].reshape(-1).to(gradient[shift])
                step = step[:, :-1]
            direction[weight] = window.weight(step, gradient[weight].shape).to(gradient[weight])
        return direction


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that steps change in place."""
    return {key: tensor.clone() for key, tensor in tensors.items()}


def _factorised(matrix: Tensor, share: float) -> Tensor:
    """Prepare matrices (G, K, K) with a share of their mean variance added for `_solved`, in float32.

    Cholesky factors; on a GPU inverses, since a product takes a fraction of the time of two triangular solutions there.
    """
    damped = matrix.double()
    power = damped.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-20)
    damped.diagonal(dim1=1, dim2=2).add_(share**0.5 * power)
    # Diverged weights, which a rollback will restore, may have no factor: checking would make the host wait.
    lower: Tensor = torch.linalg.cholesky_ex(damped).L
    return torch.cholesky_inverse(lower).float() if lower.is_cuda else lower.float()


def _solved(factors: Tensor, right: Tensor) -> Tensor:
    """Solve linear systems with right-hand sides (G, K, N) by what `_factorised` gave."""
    return factors @ right if factors.is_cuda else torch.cholesky_solve(right, factors)
