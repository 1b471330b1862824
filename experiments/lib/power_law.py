"""Power laws fitted to measurements, and what they say for a network that was not measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from depfuse.groups import ChannelGroups
from depfuse.networks.running import evaluating


@dataclass(frozen=True)
class PowerLaw:
    """y = constant * x ** exponent, with the exponent's standard error; NaN where two points leave none."""

    exponent: float
    error: float
    constant: float

    @classmethod
    def fit(cls, x: Sequence[float], y: Sequence[float]) -> PowerLaw:
        """Least squares between the logarithms of positive numbers, at two different x or more."""
        found = stats.linregress(np.log(x), np.log(y))
        error = float(found.stderr) if len(x) > 2 else math.nan
        return cls(float(found.slope), error, math.exp(float(found.intercept)))

    def at(self, x: float) -> float:
        """What it says for x."""
        return self.constant * math.pow(x, self.exponent)

    def text(self) -> str:
        """`1.98 ± 0.03`, the exponent with its standard error."""
        return f"{self.exponent:.2f}" if math.isnan(self.error) else f"{self.exponent:.2f} ± {self.error:.2f}"


@dataclass(frozen=True)
class Work:
    """What the corridor has to do for one network, but for constants.

    Attributes
    ----------
    parameters
        Of the network.
    forward
        Floating-point operations of one image's forward pass.
    covariance
        Those of one image's sums of products between the channels of two networks: twice the positions times the
        squared number of channels, at each tensor that is watched.
    products
        Entries of these sums.
    groups
        Sizes of the free groups.
    """

    parameters: float
    forward: float
    covariance: float
    products: float
    groups: tuple[float, ...]

    @classmethod
    def of(cls, network: nn.Module, groups: ChannelGroups, example: Tensor) -> Work:
        """Count for a network, with what is watched after the non-linearity, for an input (1, C, H, W)."""
        taps = [[tap for tap in group.taps if tap.position == "after"] or group.taps for group in groups.free]
        watched = {(tap.module, tap.side) for own in taps for tap in own}
        shapes: dict[tuple[str, str], torch.Size] = {}
        handles = []
        for name, module in network.named_modules():

            def note(_: nn.Module, given: tuple[Tensor, ...], result: Tensor, name: str = name) -> None:
                shapes[name, "input"], shapes[name, "output"] = given[0].shape, result.shape

            if any(name == own for own, _ in watched):
                handles.append(module.register_forward_hook(note))
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), evaluating(network), counter:
            network(example)
        for handle in handles:
            handle.remove()
        channels = {place: shapes[place][1] for place in watched}
        positions = {place: shapes[place][2:].numel() for place in watched}
        return cls(
            float(sum(tensor.numel() for tensor in network.parameters())),
            float(counter.get_total_flops()),
            float(sum(2 * positions[place] * channels[place] ** 2 for place in watched)),
            float(sum(count**2 for count in channels.values())),
            tuple(float(group.size) for group in groups.free),
        )

    def widened(self, times: float) -> Work:
        """The same with so many times the channels everywhere: all but the input and the outputs grow."""
        square = times**2
        return replace(
            self,
            parameters=square * self.parameters,
            forward=square * self.forward,
            covariance=square * self.covariance,
            products=square * self.products,
            groups=tuple(times * size for size in self.groups),
        )


@dataclass(frozen=True)
class Rates:
    """What the measurements say: operations per second of each kind, and seconds to assign n channels."""

    forward: float
    covariance: float
    assignment: PowerLaw

    def seconds(self, work: Work, images: int) -> dict[str, float]:
        """Estimated seconds of two parents' fusion, by what takes them.

        Forward passes are three: one of each parent to match, one of the child to reset BatchNorm.
        """
        return {
            "forward passes": 3 * images * work.forward / self.forward,
            "covariances": images * work.covariance / self.covariance,
            "assignment": sum(self.assignment.at(size) for size in work.groups),
        }

    @staticmethod
    def gibibytes(work: Work) -> dict[str, float]:
        """Memory that no choice of the batch lowers: weights of parents and child, and sums of products in float64."""
        return {"weights": 3 * 4 * work.parameters / 2**30, "covariances": 8 * work.products / 2**30}
