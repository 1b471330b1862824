"""The child's layers solved one after another for what the parents' do."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depfuse.align.coupling import Couplings, apply_couplings
from depfuse.data.loader import Loader
from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.groups import ChannelGroups
from depfuse.groups.depgraph import unwrap
from depfuse.merge.refit.graph import Program, State, Values
from depfuse.merge.refit.rows import Window
from depfuse.merge.refit.solve import Rows, ridge
from depfuse.merge.refit.units import Unit, find_units
from depfuse.merge.refit.walk import Walk

MOST_ROWS = 2**17
MOST_BYTES = 2**29


def refit_ridge(
    child: nn.Module,
    models: Sequence[nn.Module],
    groups: ChannelGroups,
    couplings: Sequence[Couplings],
    shares: Sequence[float],
    calibration: Loader,
    seed: int = 0,
    classes=None, zipped=None,
) :
    if zipped:
        couplings=[{} for _ in couplings]
    states = [apply_couplings(groups, found, model.state_dict()) for model, found in zip(models, couplings, strict=True)]
    r=_Refit(child, states, shares, calibration, seed)
    r.classes=classes
    r.mixes=None
    if zipped:
        from depfuse.merge.refit.zipping import zip_targets
        r.mixes=zip_targets(models,groups,r,calibration,zipped)
    r.run()
    return r


class _Refit:
    def __init__(
        self, child: nn.Module, parents: Sequence[State], shares: Sequence[float], calibration: Loader, seed: int
    ) -> None:
        images = next(iter(calibration))[0][: calibration.count // len(calibration)]
        self.network = unwrap(child)
        self.program = Program(child, images)
        self.units = find_units(self.program, _shared(self.network))
        self.state = dict(self.network.state_dict())
        self.parents, self.shares = list(parents), list(shares)
        self.walk = Walk(self.program, [*parents, self.state], calibration)
        self.generator = torch.Generator().manual_seed(seed)
        self.images = len(calibration) * self.walk.size

    def run(self) -> None:
        with torch.inference_mode():
            for unit in self.units:
                self.fit(unit)

    def fit(self, unit: Unit) -> None:
        walk, child = self.walk, len(self.parents)
        window = Window.of(unit.node)
        start, end = walk.position(unit.node), walk.position(unit.target) + 1
        needed = [unit.target, unit.input, *([unit.other] if unit.other is not None else [])]
        places = self._places(unit, window)
        rows = _Stack()
        for number, values in enumerate(walk.until([end] * child + [start], needed)):
            chosen = places(number)
            inputs = window.inputs(values[child][unit.input], chosen)
            if self.has_intercept(unit):
                inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], -1)
            target, bounds = self.target(unit, values[:child])
            if unit.other is not None:
                carried = values[child][unit.other]
                target = target - carried
                bounds = None if bounds is None else bounds - carried
            parts = [inputs, window.outputs(target, chosen)]
            if bounds is not None:
                parts.append(window.outputs(bounds, chosen))
            rows.add(number, len(walk.loader), parts)
        system = Rows(*rows.tensors)
        weight, strength = ridge(system, self.prior(unit, window), intercept=self.has_intercept(unit))
        if VERBOSE:
            o=system.outputs
            print(unit.name,tuple(system.inputs.shape),strength,'relerr',system.error(weight)/float((o-o.mean(1,keepdim=True)).square().sum()))
        self.grams = getattr(self,'grams',{}); self.grams[unit.name]=(window, __import__('depfuse.merge.refit.solve',fromlist=['gram']).gram(system.inputs,system.inputs)/system.inputs.shape[1])
        bias = weight[:, -1] if self.has_intercept(unit) else None
        self.write(unit, window, weight[:, :-1] if bias is not None else weight, bias, system)

    def target(self, unit: Unit, values: Sequence[Values]) -> tuple[Tensor, Tensor | None]:
        found = [own[unit.target] for own in values]
        if unit.weight and self.parents[0][unit.weight].shape!=self.state[unit.weight].shape:
            size=self.state[unit.weight].shape[0]
            out=torch.zeros(len(found[0]),size); n=torch.zeros(size)
            for v,c,w in zip(found,self.classes,self.shares): out[:,c]+=w*v; n[c]+=w
            return out/n, None
        if self.mixes is not None:
            ms=self.mixes[unit.name]
            pos=[v.relu() if unit.rectified else v for v in found]
            def mix(vs):
                return sum(torch.einsum('oc,nc...->no...',m,v) if vs[0].dim()!=3 else v@m.T for m,v in zip(ms,vs))
            if not unit.rectified: return mix(pos),None
            after=mix(pos); idle=after<=1e-6*after.abs().max()
            return torch.where(idle,mix(found).clamp_max(0),after),torch.where(idle,0.0,-torch.inf)
        mean = self._mean(found)
        if not unit.rectified:
            return mean, None
        after = self._mean([value.relu() for value in found])
        idle = after <= 0
        return torch.where(idle, mean, after), torch.where(idle, 0.0, -torch.inf)

    def _mean(self, values: Sequence[Tensor]) -> Tensor:
        return sum(share * value for share, value in zip(self.shares, values, strict=True))  # type: ignore[return-value]

    def _places(self, unit: Unit, window: Window) -> Callable[[int], Tensor | None]:
        width = window.matrix(self.state[unit.weight]).shape[1] * window.groups if unit.weight else window.groups
        most = min(MOST_ROWS, MOST_BYTES // (4 * width))
        wanted = max(1, most // self.images)
        if wanted >= window.positions:
            return lambda _: None
        drawn = [
            torch.randperm(window.positions, generator=self.generator)[:wanted].sort().values
            for _ in range(len(self.walk.loader))
        ]
        return lambda number: drawn[number]

    def has_intercept(self, unit: Unit) -> bool:
        return unit.bias is not None or unit.norm is not None

    def prior(self, unit: Unit, window: Window) -> Tensor:
        scale = torch.ones(1)
        if unit.norm is not None:
            scale = self.state[unit.norm.weight] / (self.state[unit.norm.variance] + unit.norm.epsilon).sqrt()
        if unit.weight is None:
            return scale.reshape(-1, 1, 1)
        matrix = window.matrix(self.state[unit.weight])
        return matrix * scale.reshape(window.groups if len(scale) > 1 else 1, 1, -1)

    def write(self, unit: Unit, window: Window, weight: Tensor, bias: Tensor, rows: Rows) -> None:
        state = self.state
        if unit.norm is None:
            _put(state[unit.weight], window.weight(weight, state[unit.weight].shape))
            if unit.bias is not None:
                _put(state[unit.bias], bias.reshape(-1))
            return
        norm = unit.norm
        if unit.weight is not None:
            # Scale the weight so that its output varies as the averaged parents' did; the norm takes it back.
            z = rows.inputs[..., : weight.shape[1]] @ weight.to(rows.inputs)
            spread = z.var(1).double()
            factor = (state[norm.variance].double().reshape(spread.shape) / spread.clamp_min(1e-30)).sqrt()
            factor = torch.where(spread > 1e-20, factor, torch.ones_like(factor))
            _put(state[unit.weight], window.weight(weight * factor[:, None], state[unit.weight].shape))
            if unit.bias is not None:
                state[unit.bias].zero_()
        else:
            factor = (1 / weight[:, 0])
        mean, variance = self.statistics(unit)
        deviation = (variance + norm.epsilon).sqrt()
        flat = (1.0 / factor).reshape(-1)
        _put(state[norm.mean], mean)
        _put(state[norm.variance], variance)
        _put(state[norm.weight], deviation * flat)
        _put(state[norm.bias], bias.reshape(-1) + mean * flat)

    def statistics(self, unit: Unit) -> tuple[Tensor, Tensor]:
        """Mean and variance of what the unit's BatchNorm takes in."""
        source = unit.input if unit.weight is None else unit.node
        end = self.walk.position(unit.node) + (unit.weight is not None)
        count, total, square = 0, 0.0, 0.0
        reached = list(self.walk._reached)
        for values in self.walk.until([*reached[:-1], end], [source]):
            value = values[-1][source].transpose(0, 1).flatten(1)
            n, m = value.shape[1], value.mean(1).double()
            v = value.var(1, correction=0).double()
            count, total, square = count + n, total + n * m, square + n * (v + m * m)
        mean = total / count
        return mean, (square / count - mean * mean).clamp_min(0.0) * count / max(1, count - 1)


class _Stack:
    """Tensors (G, rows, columns) put one below the other without a copy at the end."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def add(self, number: int, total: int, parts: Sequence[Tensor]) -> None:
        """Take part `number` of `total` equal parts."""
        if not self.tensors:
            self.tensors = [part.new_empty(len(part), part.shape[1] * total, part.shape[2]) for part in parts]
        for whole, part in zip(self.tensors, parts, strict=True):
            whole[:, number * part.shape[1] : (number + 1) * part.shape[1]] = part


VERBOSE = False


def _put(tensor: Tensor, value: Tensor) -> None:
    tensor.copy_(value.to(tensor))


def _shared(network: nn.Module) -> set[str]:
    """Names of parameters that are one tensor under several names."""
    named = list(network.named_parameters(remove_duplicate=False))
    counts = Counter(id(tensor) for _, tensor in named)
    return {name for name, tensor in named if counts[id(tensor)] > 1}
