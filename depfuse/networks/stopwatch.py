"""Seconds that computations take, a GPU's work included, from which the cost of more is foretold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import ParamSpec

import torch
from torch import Tensor, nn

from depfuse.networks.forward import run_network
from depfuse.networks.running import evaluating

P = ParamSpec("P")


class Stopwatch:
    """Measures seconds of computations on one device.

    Parameters
    ----------
    device
        Its work is finished before the clock is read.
    clock
        Gives seconds; the system's where None.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] | None = None) -> None:
        self._device, self._clock = device, clock or time.perf_counter

    def now(self) -> float:
        """Read the clock, once all work of the device is finished."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()

    def seconds(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
        """Run a function once."""
        started = self.now()
        function(*args, **kwargs)
        return self.now() - started


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's parameters; the CPU where it has none."""
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def seconds_of_pass(
    network: nn.Module, batches: Iterable[tuple[Tensor, object]], clock: Callable[[], float] | None = None
) -> float:
    """Measure the second of two passes of a network over a few batches; the first compiles and caches.

    A network may draw random numbers: what is drawn later is as if it had not run.

    Parameters
    ----------
    network
        Run in evaluation mode, without gradients.
    batches
        Images (B, C, H, W) and anything, gone through twice.
    clock
        See `Stopwatch`.
    """
    device = device_of(network)
    watch = Stopwatch(device, clock)

    def run() -> None:
        for images, _ in batches:
            run_network(network, images)

    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), evaluating(network):
        run()
        return watch.seconds(run)
