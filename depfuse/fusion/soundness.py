"""Refuse impossible values in parents, and children whose outputs are not finite or constant."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from depfuse.data.inputs import count_samples, map_tensors
from depfuse.data.loader import Loader
from depfuse.errors import DepfuseWarning, FusionError, RecipeError
from depfuse.networks.forward import Example, run_network
from depfuse.networks.running import evaluating, float_tensors

VARIANCE = "running_var"
IMAGES = 64  # to run networks on
LOUD = 10.0  # times the spread of another parent's outputs; of smoothed labels and sharp ones it is three or four
# Spread of the outputs over images, as a share of the parents'.
NOTHING = 1e-5
HARDLY_ANYTHING = 1e-3


def check_variances(state: Mapping[str, Tensor], number: int) -> None:
    """Refuse a parent with negative variances, of which a BatchNorm would take the root.

    Parameters
    ----------
    state
        Its state dict.
    number
        Of the parent, from 1.

    Raises
    ------
    RecipeError
        There are some; it names the parent and the key.
    """
    if (found := negative_variances(state)) is not None:
        raise RecipeError(f"parent {number} has {found}")


def negative_variances(state: Mapping[str, Tensor]) -> str | None:
    """Say which variances of a state dict are negative, and what that means; None where none are."""
    for key, tensor in state.items():
        if key.rpartition(".")[2] == VARIANCE and bool((tensor < 0).any()):
            return (
                f"negative variances in {key} ({int((tensor < 0).sum())} of {tensor.numel()}): "
                "no images give these, the checkpoint is damaged or was changed"
            )
    return None


class Soundness:
    """Find the step of a fusion after which a child is not finite, and refuse one with constant outputs.

    Parameters
    ----------
    parents
        The parents, with whose outputs the child's are compared.
    calibration, example
        Images to run it on, or an input where there are none; without either its tensors alone are checked.
    """

    def __init__(self, parents: Sequence[nn.Module], calibration: Loader | None, example: Example | None) -> None:
        self._parents = parents
        self._inputs = [example] if example is not None else []
        if calibration is not None:
            self._inputs = _first_inputs(calibration)
        self._step: str | None = None
        self._what = ""

    def after(self, step: str, child: nn.Module) -> None:
        """Check a child after a step; record the first step after which it is not finite and stays so."""
        what = self._not_finite(child)
        if what is None:
            self._step = None
        elif self._step is None:
            self._step, self._what = step, what

    def check(self) -> None:
        """Refuse the child if it was not finite after the last step.

        Raises
        ------
        FusionError
            It is not finite; the message names the first step after which it was not.
        """
        if self._step is not None:
            raise FusionError(
                f"the child is not finite: after {self._step} {self._what} NaN or infinite values, and the parents "
                "none; choose another method for that step"
            )

    def check_spread(self, child: nn.Module) -> None:
        """Refuse a child whose outputs do not depend on the input, and warn of one where they hardly do.

        Raises
        ------
        FusionError
            Its outputs are the same for all images, although the parents' are not.
        """
        if sum(map(count_samples, self._inputs)) < 2:
            return
        parents = [_spread(self._outputs(parent)) for parent in self._parents]
        usual, spread = sum(parents) / len(parents), _spread(self._outputs(child))
        if not spread <= HARDLY_ANYTHING * usual:
            return
        variation = (
            f"outputs vary {spread / usual:.1e} times as much from image to image as its parents'" if usual else ""
        )
        if usual > 0 and spread <= NOTHING * usual:
            raise FusionError(
                f"the child gives the same for every image: its {variation}; choose another matching, or refit ridge"
            )
        if usual > 0:
            warnings.warn(f"the child hardly depends on its input: its {variation}", DepfuseWarning, stacklevel=4)

    def _not_finite(self, child: nn.Module) -> str | None:
        """Name what of a child is not finite: a tensor, or the outputs where those of all parents are."""
        for key, tensor in child.state_dict().items():
            if (tensor.is_floating_point() or tensor.is_complex()) and not bool(tensor.isfinite().all()):
                return f"{key} holds"
        if _all_finite(self._outputs(child)) or not all(map(_all_finite, map(self._outputs, self._parents))):
            return None
        return "its outputs hold"

    def _outputs(self, model: nn.Module) -> list[list[Tensor]]:
        return _outputs(model, self._inputs)


def warn_of_scales(parents: Sequence[nn.Module], calibration: Loader | None) -> None:
    """Warn of a parent beside which another one's outputs hardly count in their mean, or whose outputs are constant."""
    inputs = [] if calibration is None else _first_inputs(calibration)
    found = [_outputs(parent, inputs) for parent in parents]
    if sum(map(count_samples, inputs)) < 2 or any(len(batch) != 1 for batches in found for batch in batches):
        return
    spreads = [_spread(batches) for batches in found]
    loudest = max(range(len(spreads)), key=spreads.__getitem__)
    for number, spread in enumerate(spreads, 1):
        if spreads[loudest] == 0 or spreads[loudest] < LOUD * spread:
            continue
        said = f"parent {number} gives the same for every image: is it trained, and are the images what it takes?"
        if spread:
            said = (
                f"outputs of parent {loudest + 1} vary {spreads[loudest] / spread:.3g} times as much from image to"
                f" image as those of parent {number}, which hardly count in their mean: bring their last layers to one"
                " scale"
            )
        warnings.warn(said, DepfuseWarning, stacklevel=4)


def gives_finite_outputs(model: nn.Module, calibration: Loader | None, example: Example | None) -> bool:
    """Tell whether a network's outputs are finite for the first images, or for an input where there are none."""
    given = [] if example is None else [example]
    return _all_finite(_outputs(model, given if calibration is None else _first_inputs(calibration)))


def _first_inputs(calibration: Loader) -> list[Example]:
    return [images for images, _ in calibration.first(IMAGES)]


def _outputs(model: nn.Module, inputs: Sequence[Example]) -> list[list[Tensor]]:
    """Compute the floating-point tensors of the outputs, for each batch."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    with torch.inference_mode(), evaluating(model):
        return [float_tensors(run_network(model, _in_type_of(images, parameter))) for images in inputs]


def _in_type_of(inputs: Example, parameter: Tensor | None) -> Example:
    """Convert inputs to the floating-point type of a network."""
    if parameter is None:
        return inputs
    kind = parameter.dtype
    converted: Example = map_tensors(lambda leaf: leaf.to(kind) if leaf.is_floating_point() else leaf, inputs)
    return converted


def _all_finite(batches: list[list[Tensor]]) -> bool:
    return all(bool(tensor.isfinite().all()) for batch in batches for tensor in batch)


def _spread(batches: list[list[Tensor]]) -> float:
    """Compute the standard deviation of the first output over images, the root of its mean square over numbers."""
    first = [batch[0] for batch in batches if batch]
    if not first:
        return 0.0
    rows = [tensor.reshape(len(tensor), -1) if tensor.dim() else tensor.reshape(1, 1) for tensor in first]
    # What has no entry for each image may have another width in a smaller batch.
    alike = torch.cat([own for own in rows if own.shape[1] == rows[0].shape[1]]).double()
    return float(alike.var(0, correction=0).mean().sqrt())
