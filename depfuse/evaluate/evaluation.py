"""Evaluate networks, alone and as an ensemble, in one pass over labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.data.inputs import take_samples
from depfuse.ensemble import targets
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import DataError, RecipeError
from depfuse.evaluate.scores import Scores
from depfuse.evaluate.tally import Tally
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.forward import Example, in_layout, run_network
from depfuse.networks.isolation import undisturbed
from depfuse.networks.memory_format import choose_layout

Batches = Iterable[tuple[Any, Any]]
"""Anything that yields (inputs (N, ...), labels (N,)) on the networks' device."""


def most_frequent(labels: Tensor) -> float:
    """Share of the most frequent label among labels (N,) from 0 on: the accuracy of a network that knows nothing."""
    return float(torch.bincount(labels).max()) / len(labels)


def evaluate(model: nn.Module, batches: Batches) -> Scores:
    """Score one network; it runs in evaluation mode and is left in the mode it had.

    Raises
    ------
    DataError
        When there is no image, the images do not fit the network, or a label has no output.
    """
    return evaluate_together([model], batches)[0]


def evaluate_together(models: Sequence[nn.Module], batches: Batches) -> list[Scores]:
    """Score several networks in one pass over the data, in the order given; see `evaluate`."""
    return _score(models, batches, [])


def evaluate_with_ensemble(
    models: Sequence[nn.Module],
    batches: Batches,
    weights: Sequence[float] | None = None,
    sets: LabelSets | None = None,
) -> tuple[list[Scores], Scores]:
    """Score networks and their logit ensemble in one pass over the data.

    Parameters
    ----------
    models : sequence of Module
        The members; all have the same number of outputs, unless `sets` says what these stand for.
    batches : iterable
        Labelled images on the networks' device.
    weights : sequence of float, optional
        One share per member, summing to one; equal shares when left out.
    sets : LabelSets, optional
        Which labels the members' outputs stand for, where they differ. A member gives those that it does not know no
        probability; the ensemble has the heads side by side.

    Returns
    -------
    list of Scores, Scores
        Each member's own, and those of sum_m weights[m] * logits_m.
    """
    shares = list(weights) if weights is not None else [1.0 / len(models)] * len(models)
    if len(shares) != len(models):
        raise RecipeError(f"{len(shares)} weights for an ensemble of {len(models)} networks: give one each")
    *members, ensemble = _score(models, batches, [shares], sets)
    return members, ensemble


def evaluate_ensemble(models: Sequence[nn.Module], batches: Batches, weights: Sequence[float] | None = None) -> Scores:
    """Score the (weighted) mean of the networks' logits; see `evaluate_with_ensemble`."""
    return evaluate_with_ensemble(models, batches, weights)[1]


@undisturbed()
def _score(
    models: Sequence[nn.Module],
    batches: Batches,
    ensembles: Sequence[Sequence[float]],
    sets: LabelSets | None = None,
) -> list[Scores]:
    """Score every network, then every ensemble (one share per network), in one pass."""
    # What is not in evaluation mode is copied instead of being switched: other threads may use it meanwhile.
    models = [m if not any(part.training for part in m.modules()) else evaluation_copy(m, shared=True) for m in models]
    tallies = [Tally() for _ in range(len(models) + len(ensembles))]
    layouts: list[torch.memory_format] = []
    with torch.inference_mode():
        for inputs, labels in batches:
            layouts = layouts or [checked_layout(model, take_samples(inputs, slice(0, 1))) for model in models]
            outputs = [
                run_network(model, in_layout(inputs, layout)) for model, layout in zip(models, layouts, strict=True)
            ]
            if sets is None:
                outputs += [mean_logits(outputs, shares) for shares in ensembles]
            else:
                outputs = sets.of_outputs(outputs) + [sets.join(outputs, shares, 1) for shares in ensembles]
            for tally, logits in zip(tallies, outputs, strict=True):
                tally.add(logits, labels)
    return [tally.scores() for tally in tallies]


def mean_logits(outputs: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Average logits (N, C), one share each."""
    widths = sorted({logits.shape[1] for logits in outputs})
    if len(widths) > 1:
        raise DataError(f"networks with {widths} outputs cannot be averaged into one ensemble")
    return targets.mean_logits(outputs, shares)


def checked_layout(model: nn.Module, image: Example) -> torch.memory_format:
    """Choose the memory format of a network's inputs, and refuse one that gives no logits."""
    layout, output = choose_layout(model, image)
    if not isinstance(output, Tensor) or output.dim() != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise DataError(f"the network must return logits (images, classes), but returned {shape}")
    return layout
