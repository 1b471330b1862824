"""Solve the units of a network, convolutions and linear layers with their BatchNorms, one after another."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from depfuse.data.augmentation import Augmentation
from depfuse.data.loader import Loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.groups import ChannelGroups
from depfuse.merge.shares import Shares
from depfuse.networks.forward import Example
from depfuse.progress import work
from depfuse.refit.layerwise.ridge import Rows, Solution, ridge
from depfuse.refit.layerwise.rows import Window
from depfuse.refit.layerwise.streams import Streams
from depfuse.refit.layerwise.targets import Mixtures, Targets, find_mixtures, shares_of
from depfuse.refit.program.decomposition import DecomposedNetwork
from depfuse.refit.program.folded import Folded, Teacher
from depfuse.refit.program.graph import State
from depfuse.refit.program.units import Unit, feeding
from depfuse.refit.program.walk import Walk
from depfuse.refit.second_order.session import Session

LOOKED_AT = 250  # images that the clusters of the parents' channels are found on
MOST_ROWS = 2**15  # of a linear system, over images and positions: more positions are drawn
MOST_BYTES = 2**28  # of its inputs, in float32
# Rows are drawn from so many images, or from as many as give `MOST_ROWS` of one in `SPREAD` positions, if fewer do; and
# from more where there would be fewer than `PER_INPUT` rows for each input.
IMAGES = 500
SPREAD = 8
PER_INPUT = 16
# Times that outputs which are free below a bound are renewed, see `ridge`: before steps of all units, and before none,
# where more of them cost a tenth of the refit and leave children no better.
SWEEPS = 3
SWEEPS_ALONE = 1


class UnitSolver:
    """Solve the units of one child."""

    def __init__(
        self,
        child: nn.Module,
        parents: Sequence[State],
        shares: Shares,
        calibration: Loader,
        ensemble: Ensemble,
        seed: int,
    ) -> None:
        self.decomposed = DecomposedNetwork.create(child, calibration)
        self.program, self.units, self.state = self.decomposed.program, self.decomposed.units, self.decomposed.state
        self.loader, self.size = self.decomposed.loader, self.decomposed.size
        self.parents, self.shares, self.ensemble, self.seed = list(parents), shares, ensemble, seed
        self.labels = labels = ensemble.labels
        self.images = len(self.loader) * self.size
        self.outputs = None
        if labels is not None and not labels.same:
            self.outputs = self._outputs()
        self._generator = torch.Generator().manual_seed(seed)

    def forward(
        self,
        clustered: ChannelGroups | None,
        steps: int,
        augment: Augmentation,
        held: Loader | None,
    ) -> Session:
        """Solve unit after unit from the child's own inputs, then improve all units together."""
        self._check_count(self.units)
        folded = Folded(self.program, self.units)
        mixtures: Mixtures = {}
        if clustered is not None:
            inner = [unit for unit in self.units if unit is not self.outputs]
            few, task = self._few(), self.ensemble.task
            mixtures = find_mixtures(folded, inner, self.parents, self.shares, clustered, few, self.seed, task)
        targets = Targets(self.shares, mixtures, self.labels, self.outputs)
        walk = Walk(self.program, [*self.parents, self.state], self.loader, folded=folded)
        sweeps = SWEEPS if steps else SWEEPS_ALONE
        units = self.units[self._of_one_parent() :]
        for unit in work().track(units, "refitting layer by layer"):
            self._solve_forward(unit, walk, targets, sweeps)
            if unit.weight is not None:
                walk.maps[-1].update(folded.map_of(unit, self.state))
        del walk
        joint, task = self.ensemble.joint, self.ensemble.task
        teacher = Teacher.create(folded, self.parents, self.shares.network, self.labels, joint=joint, task=task)
        streams = Streams(folded.units, targets)

        def targets_of(images: Tensor, temperature: float) -> tuple[Tensor, list[Tensor]]:
            logits, values = teacher.watched(images, streams.nodes, temperature)
            return logits, streams.wanted(values)

        session = Session(self.decomposed, folded, targets_of, streams, self.seed, task)
        session.second_pass(steps, augment, held=held)
        return session

    def _of_one_parent(self) -> int:
        """Count the units, from the input on, that one parent has all shares in: they stay as they are."""
        first = shares_of(self.units[0], self.shares) if self.units else ()
        if max(first, default=0.0) < 1.0:
            return 0
        return next((n for n, unit in enumerate(self.units) if shares_of(unit, self.shares) != first), len(self.units))

    def _few(self) -> list[Example]:
        """Prepare about `LOOKED_AT` images, in batches of the program's size."""
        count = self.size * max(1, min(LOOKED_AT, self.images) // self.size)
        last, generator = self.loader.channels_last, torch.Generator()
        parts = [torch.arange(start, start + self.size) for start in range(0, count, self.size)]
        return [self.loader.prepared(part, None, generator, channels_last=last) for part in parts]

    def heads(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Solve the layer that gives the logits, and no other: each state is a parent's, but for that layer."""
        walk = Walk(self.program, self.parents, self.loader)
        unit = self.outputs or next((unit for unit in self.units if unit.target is self.program.output), None)
        if unit is None:
            raise RecipeError("the layer that gives the class scores cannot be refitted")
        self._check_count([unit])
        targets = Targets(self.shares, {}, self.labels, self.outputs)
        ends = [walk.position(unit.target) + 1] * len(self.parents)
        self._solve(unit, walk, targets, ends, states, len(self.loader))

    def in_parallel(self, *, pooled: bool) -> None:
        """Solve each unit from the parents' inputs, stacked as rows (`pooled`) or averaged."""
        self._check_count(self.units)
        walk = Walk(self.program, self.parents, self.loader)
        targets = Targets(self.shares, {}, self.labels, self.outputs)
        for unit in work().track(self.units, "refitting layer by layer"):
            window, end = Window.of(unit.node), walk.position(unit.end) + 1
            shares = shares_of(unit, self.shares)
            weights = shares_of(feeding(unit, self.units) or unit, self.shares)
            intercept = has_intercept(unit)
            places = self._places(unit, window, self.images * (len(self.parents) if pooled else 1))
            stack = _Stack(len(self.loader))
            for number, values in enumerate(walk.until([end] * len(self.parents), [unit.end, unit.input])):
                chosen = places(number)
                sources = [parent_values[unit.input] for parent_values in values]
                ends = [parent_values[unit.end] for parent_values in values]
                if pooled and unit is not self.outputs:
                    # The square root of a share on a row weights its error by the share.
                    roots = [(share * len(shares)) ** 0.5 for share in shares]
                    inputs = torch.cat(
                        [
                            root * self._inputs(window, x, chosen, intercept)
                            for root, x in zip(roots, sources, strict=True)
                        ],
                        1,
                    )
                    outputs = torch.cat(
                        [root * window.outputs(y, chosen) for root, y in zip(roots, ends, strict=True)], 1
                    )
                else:
                    mean = torch.stack([w * x for w, x in zip(weights, sources, strict=True)]).sum(0)
                    inputs = self._inputs(window, mean, chosen, intercept)
                    outputs = window.outputs(targets.mixed(unit, ends), chosen)
                stack.add(number, [inputs, outputs])
            rows = Rows(*stack.tensors)
            self._write(unit, window, ridge(rows, self._prior(unit, window), intercept=intercept))

    def _solve_forward(self, unit: Unit, walk: Walk, targets: Targets, sweeps: int) -> None:
        """Solve a unit of the child, which the walk runs after the parents."""
        end = walk.position(unit.target) + 1
        ends = [end] * len(self.parents) + [walk.position(unit.node)]
        self._solve(unit, walk, targets, ends, [self.state], self._batches(unit, Window.of(unit.node)), sweeps)

    def _solve(
        self,
        unit: Unit,
        walk: Walk,
        targets: Targets,
        ends: Sequence[int],
        states: Sequence[dict[str, Tensor]],
        batches: int,
        sweeps: int = SWEEPS,
    ) -> None:
        """Solve a unit for the parents' mixture, in the states of the last networks of a walk, each from its inputs."""
        window, intercept, parents = Window.of(unit.node), has_intercept(unit), len(self.parents)
        needed = [unit.target, unit.input, *([unit.other] if unit.other is not None else [])]
        places = self._places(unit, window, batches * self.size)
        stacks = [_Stack(batches) for _ in states]
        for number, values in enumerate(walk.until(ends, needed, batches)):
            chosen = places(number)

            def at_places(value: Tensor, chosen: Tensor | None = chosen) -> Tensor:
                return value if chosen is None else window.gathered(value, chosen)

            mixture, limits = targets(unit, [at_places(own[unit.target]) for own in values[:parents]])
            for stack, inputs in zip(stacks, values[-len(states) :], strict=True):
                target, bounds = mixture, limits
                if unit.other is not None:
                    carried = at_places(inputs[unit.other])
                    target = target - carried
                    bounds = None if bounds is None else bounds - carried
                parts = [self._inputs(window, inputs[unit.input], chosen, intercept)]
                parts += [window.outputs(part) for part in (target, bounds) if part is not None]
                stack.add(number, parts)
        for stack, state in zip(stacks, states, strict=True):
            self.state = state
            rows = Rows(*stack.tensors)
            self._write(unit, window, ridge(rows, self._prior(unit, window), intercept=intercept, sweeps=sweeps))

    def _inputs(self, window: Window, x: Tensor, places: Tensor | None, intercept: bool) -> Tensor:
        rows = window.inputs(x, places)
        return torch.cat([rows, torch.ones_like(rows[..., :1])], -1) if intercept else rows

    def _most_rows(self, unit: Unit, window: Window) -> int:
        """Compute the number of rows that suffice, or that memory allows."""
        width = window.groups
        if unit.weight is not None:
            width *= window.matrix(self.state[unit.weight]).shape[1]
        return min(MOST_ROWS, MOST_BYTES // (4 * width))

    def _batches(self, unit: Unit, window: Window) -> int:
        """Compute from how many batches the rows of a unit are drawn.

        Where maps are large, few images have enough positions, and the values of more would only take time and memory.
        """
        width = 1 if unit.weight is None else window.matrix(self.state[unit.weight]).shape[1]
        most = self._most_rows(unit, window)
        enough = min(most, PER_INPUT * width) / window.positions
        images = max(enough, min(IMAGES, SPREAD * most / window.positions))
        return min(len(self.loader), math.ceil(images / self.size))

    def _places(self, unit: Unit, window: Window, samples: int) -> Callable[[int], Tensor | None]:
        """Choose positions of the images of each batch: all, or as many as memory allows, at random."""
        wanted = max(1, self._most_rows(unit, window) // samples)
        if wanted >= window.positions:
            return lambda _: None
        drawn = [
            torch.randperm(window.positions, generator=self._generator)[:wanted].sort().values for _ in self.loader
        ]
        return lambda number: drawn[number]

    def _prior(self, unit: Unit, window: Window) -> Tensor:
        """Return the merged layer as one linear map (G, K, O)."""
        scale: Tensor | None = None
        if unit.norm is not None and unit.norm.weight is not None:
            scale = self.state[unit.norm.weight] / (self.state[unit.norm.variance] + unit.norm.epsilon).sqrt()
        if unit.weight is None:
            assert scale is not None
            return scale.reshape(-1, 1, 1)
        matrix: Tensor = window.matrix(self.state[unit.weight])
        return matrix if scale is None else matrix * scale.reshape(window.groups, 1, -1)

    def _write(self, unit: Unit, window: Window, solved: Solution) -> None:
        """Write an affine map as the layer and its BatchNorm, with the statistics of its outputs for the rows."""
        state, norm, weight = self.state, unit.norm, solved.weight
        shift = torch.zeros_like(weight[:, 0])
        if has_intercept(unit):
            weight, shift = weight[:, :-1], weight[:, -1]
        if norm is None:
            assert unit.weight is not None
            _put(state[unit.weight], window.weight(weight, state[unit.weight].shape))
            if unit.bias is not None:
                _put(state[unit.bias], shift.reshape(-1))
            return
        if unit.weight is None:
            factor = weight[:, 0]
            mean, variance = solved.moments(torch.ones_like(weight))
        else:
            # The layer gives what varies as its average parent's output does, and the BatchNorm the rest.
            mean, variance = solved.moments(weight)
            factor = (variance / state[norm.variance].double().reshape(variance.shape).clamp_min(1e-30)).sqrt()
            factor = torch.where(factor > 1e-10, factor, torch.ones_like(factor))
            mean, variance = mean / factor, variance / factor.square()
            _put(state[unit.weight], window.weight(weight / factor[:, None], state[unit.weight].shape))
            if unit.bias is not None:
                state[unit.bias].zero_()
        mean, variance, factor = mean.reshape(-1), variance.reshape(-1), factor.reshape(-1)
        assert norm.weight is not None
        assert norm.bias is not None
        _put(state[norm.mean], mean)
        _put(state[norm.variance], variance)
        _put(state[norm.weight], (variance + norm.epsilon).sqrt() * factor)
        _put(state[norm.bias], shift.reshape(-1) + mean * factor)

    def _outputs(self) -> Unit:
        """Find the unit whose outputs are the class scores."""
        for unit in self.units:
            if any(parent[unit.keys[0]].shape != self.state[unit.keys[0]].shape for parent in self.parents):
                return unit
        raise RecipeError("the layer that gives the class scores cannot be refitted: choose refit none")

    def _check_count(self, units: Sequence[Unit]) -> None:
        """Warn where a layer has more inputs than rows to fit them to."""
        for unit in units:
            window = Window.of(unit.node)
            width = 1 if unit.weight is None else window.matrix(self.state[unit.weight]).shape[1]
            if width > self.images * window.positions:
                warnings.warn(
                    f"{unit.keys[0]} has {width} inputs, but {self.images} images show only"
                    f" {self.images * window.positions} examples of them: it stays closer to the average; "
                    f"give more calibration images",
                    DepfuseWarning,
                    stacklevel=4,
                )
                return


class _Stack:
    """Tensors (G, rows, columns) that are stacked along rows, without a copy at the end."""

    def __init__(self, total: int) -> None:
        self.tensors: list[Tensor] = []
        self._total = total

    def add(self, number: int, parts: Sequence[Tensor]) -> None:
        """Add part `number` of equal parts."""
        if not self.tensors:
            self.tensors = [part.new_empty(len(part), part.shape[1] * self._total, part.shape[2]) for part in parts]
        for whole, part in zip(self.tensors, parts, strict=True):
            whole[:, number * part.shape[1] : (number + 1) * part.shape[1]] = part


def has_intercept(unit: Unit) -> bool:
    """Tell whether a unit can add a constant to its outputs."""
    return unit.bias is not None or unit.norm is not None


def _put(tensor: Tensor, value: Tensor) -> None:
    tensor.copy_(value.to(tensor))
