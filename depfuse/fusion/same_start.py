"""Tell whether parents share a start: their plain average then needs neither matching nor refit."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.ensemble.distance import EnsembleDistance
from depfuse.ensemble.ensemble import Ensemble
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.networks.real_state import as_real
from depfuse.renorm import has_running_statistics, renormalise
from depfuse.tasks.task import Task

COSINE = 0.3  # of the weights; those of networks with different starts are about 0
ROUNDING = 1e-6  # of the distance's unit, about eight times the relative rounding of float32


def share_a_start(
    models: Sequence[nn.Module], shares: Sequence[float], images: Loader, task: Task | None = None
) -> bool:
    """Tell whether the plain average of parents agrees with their ensemble as well as the best of them does.

    Compared on the last calibration images (`CalibrationSplit.for_start`), within one standard error of the paired
    difference. If it does not, the average is compared again with its BatchNorm reset on the other images. Parents
    whose weights are not similar (`COSINE`) share no start, whatever their average does: that of untrained networks
    agrees with anything.

    Parameters
    ----------
    models
        The parents as they are, all with the same labels.
    shares
        One per parent.
    images
        Calibration images; labels are not read.
    task
        What the outputs mean; by their shape where None.
    """
    states = [dict(model.state_dict()) for model in models]
    if any(state.keys() != states[0].keys() for state in states) or not _look_alike(models[0], states):
        return False
    split = CalibrationSplit.for_start(images)
    if split is None:
        return False
    distance = EnsembleDistance(Ensemble(models, shares, task=task), split.judging)
    rounding = ROUNDING * distance.ensemble.task_of(distance.target).unit(distance.target)
    best = min(map(distance.unscaled_losses, models), key=lambda losses: float(losses.mean()))

    def agrees(network: nn.Module) -> bool:
        more = (distance.unscaled_losses(network) - best).double()
        error = float(more.std()) / math.sqrt(len(more))
        return float(more.mean()) <= error + rounding

    average = copy.deepcopy(models[0])
    with torch.no_grad():  # not by load_state_dict, which some networks refuse without their metadata
        for key, tensor in average.state_dict().items():
            tensor.copy_(_mean([state[key] for state in states], shares))
    if agrees(average):
        return True
    if not has_running_statistics(average):
        return False
    renormalise(average, "reset", split.statistics)
    return agrees(average)


def _look_alike(model: nn.Module, states: Sequence[dict[str, Tensor]]) -> bool:
    """Tell whether all parents' weights have the first one's shapes and a cosine of at least `COSINE` with its own."""
    first = states[0]
    if any(state[key].shape != tensor.shape for state in states for key, tensor in first.items()):
        return False
    keys = [key for key, weight in model.named_parameters(remove_duplicate=False) if weight.dim() > 1 and key in first]
    vectors = [torch.cat([as_real(state[key]).flatten().double() for key in keys]) for state in states if keys]
    return bool(vectors) and all(
        float(nn.functional.cosine_similarity(vectors[0], other, dim=0)) >= COSINE for other in vectors[1:]
    )


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    if not (tensors[0].is_floating_point() or tensors[0].is_complex()):
        return tensors[0]
    return torch.stack([share * tensor for share, tensor in zip(shares, tensors, strict=True)]).sum(0)
