"""Run several networks on the same batches; those that differ in their last layer alone are run once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.data.inputs import take_samples
from depfuse.errors import ArchitectureError, DataError
from depfuse.networks.copying import evaluation_copy, unwrap
from depfuse.networks.forward import Example, in_layout, run_network
from depfuse.networks.memory_format import choose_layout
from depfuse.tasks.outputs import CLASSES
from depfuse.tasks.task import Task

TOLERANCE = 1e-4  # relative to the largest output, by which a layer's own outputs may differ from its network's


class Together:
    """Networks that are run on each batch one after another, in evaluation mode.

    A parent with its head refitted is the parent but for the last layer: where networks have equal modules and tensors
    except those of one layer, and that layer's output is the network's, all before it is computed once. That it gives
    what the network does is checked on the first image.

    Parameters
    ----------
    models
        Left in the mode that they have; each returns the tensor that counts.
    task
        What outputs mean.
    """

    def __init__(self, models: Sequence[nn.Module], task: Task = CLASSES) -> None:
        # What is not in evaluation mode is copied instead of being switched: other threads may use it meanwhile.
        self._models = [
            evaluation_copy(m, shared=True) if any(part.training for part in m.modules()) else m for m in models
        ]
        self._task = task
        self._runs: list[_Run] = []

    def __call__(self, inputs: Example) -> list[Tensor]:
        """Run all on a batch; return their outputs (N, ...), in their order.

        Raises
        ------
        DataError
            The images do not fit a network, or its outputs are not of the task.
        """
        if not self._runs:
            self._runs = self._prepared(take_samples(inputs, slice(0, 1)))
        outputs: dict[int, Tensor] = {}
        for run in self._runs:
            outputs |= run(inputs)
        return [outputs[number] for number in range(len(self._models))]

    def _prepared(self, image: Example) -> list[_Run]:
        """Run every network on one image, and find those that can be run together with one before."""
        runs: list[_Run] = []
        for number, model in enumerate(self._models):
            layout, output = self._checked(model, image)
            own = _Run(number, model, layout, output)
            if not any(run.takes(own, image) for run in runs):
                runs.append(own)
        return runs

    def _checked(self, model: nn.Module, image: Example) -> tuple[torch.memory_format, Tensor]:
        """Choose the memory format of a network's inputs, and refuse one whose outputs are not of the task."""
        layout, output = choose_layout(model, image)
        if not isinstance(output, Tensor):
            raise DataError(
                f"the network gives a {type(output).__name__} of outputs: say which tensor of it is scored, as `scores`"
            )
        if self._task.name == CLASSES.name and output.dim() != 2:
            raise DataError(
                f"the network gives {tuple(output.shape)} for one image, and class scores are (images, classes): name"
                " the `task` that it is of"
            )
        return layout, output


@dataclass(eq=False)
class _Run:
    """One network, and those that are equal to it but for their last layer.

    Attributes
    ----------
    number, model, layout
        Of the network that is run.
    first
        Its output for the first image.
    place
        Name of the layer in which the others differ; empty as long as there are none.
    others
        Number of another network -> the network.
    """

    number: int
    model: nn.Module
    layout: torch.memory_format
    first: Tensor
    place: str = ""
    others: dict[int, nn.Module] = field(default_factory=dict)

    def __call__(self, inputs: Example) -> dict[int, Tensor]:
        """Run the network and the others' last layers; return the outputs by number."""
        inputs = in_layout(inputs, self.layout)
        if not self.others:
            return {self.number: run_network(self.model, inputs)}
        output, call = self._watched(inputs)
        if call is None:  # the way through the network depends on the batch
            others = {number: run_network(other, inputs) for number, other in self.others.items()}
        else:
            others = {number: call.by(other.get_submodule(self.place)) for number, other in self.others.items()}
        return {self.number: output, **others}

    def takes(self, other: _Run, image: Example) -> bool:
        """Take another network along, where it differs in the last layer alone and gives the same output then."""
        place = None if other.layout != self.layout else _where_they_differ(self.model, other.model)
        if place is None or self.place not in ("", place):
            return False
        try:
            # A hook on the user's own network would be seen by other threads.
            model = self.model if self.others else evaluation_copy(self.model, shared=True)
        except ArchitectureError:
            return False
        output, call = replace(self, model=model, place=place)._watched(in_layout(image, self.layout))
        if call is None or not _close(output, self.first):
            return False
        if not _close(call.by(other.model.get_submodule(place)), other.first):
            return False
        self.model, self.place = model, place
        self.others[other.number] = other.model
        return True

    def _watched(self, inputs: Example) -> tuple[Tensor, _LayerCall | None]:
        """Run the network; return its output and the call of the layer that gave it, None where there is no such."""
        calls: list[_LayerCall] = []
        handle = self.model.get_submodule(self.place).register_forward_hook(
            lambda _, given, named, output: calls.append(_LayerCall(given, named, output)), with_kwargs=True
        )
        try:
            output = run_network(self.model, inputs)
        finally:
            handle.remove()
        return output, calls[0] if len(calls) == 1 and calls[0].output is output else None


@dataclass(frozen=True, eq=False)
class _LayerCall:
    """A call of a layer: its positional and named inputs, and its output."""

    given: tuple[Any, ...]
    named: Mapping[str, Any]
    output: Any

    def by(self, layer: nn.Module) -> Any:
        """Give the inputs to another layer."""
        return layer(*self.given, **self.named)


def _close(found: Any, wanted: Tensor) -> bool:
    """Tell whether a layer gives what its network does, up to rounding."""
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        return False
    limit = TOLERANCE * float(wanted.abs().amax()) if wanted.numel() else 0.0
    return torch.allclose(found, wanted, rtol=0.0, atol=limit)


def _where_they_differ(first: nn.Module, second: nn.Module) -> str | None:
    """Return the name of the only layer whose tensors differ between two networks; None where it is not one."""
    if any(unwrap(model) is not model for model in (first, second)):
        return None  # what is compiled or spread over devices runs as its owner says
    kinds = [[(name, type(module)) for name, module in model.named_modules()] for model in (first, second)]
    if kinds[0] != kinds[1]:
        return None
    own, other = first.state_dict(), second.state_dict()
    if own.keys() != other.keys():
        return None
    layers: set[str] = set()
    for key, tensor in own.items():
        if not _same(tensor, other[key]):
            layers.add(key.rpartition(".")[0])
            if len(layers) > 1:
                return None
    return layers.pop() or None if layers else None


def _same(first: Any, second: Any) -> bool:
    """Compare two entries of state dicts; what is no tensor counts as different."""
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return False
    alike = first.shape == second.shape and first.dtype == second.dtype and first.device == second.device
    return alike and (first.data_ptr() == second.data_ptr() or torch.equal(first, second))
