"""Compare networks with an ensemble on images without labels, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from depfuse.data.inputs import take_samples
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import DataError
from depfuse.evaluate.evaluation import Batches, checked_layout, mean_logits
from depfuse.evaluate.scores import Agreement
from depfuse.networks.copying import evaluation_copy
from depfuse.networks.forward import in_layout, run_network
from depfuse.networks.isolation import undisturbed


@undisturbed()
def evaluate_agreement(
    members: Sequence[nn.Module],
    others: Sequence[nn.Module],
    batches: Batches,
    weights: Sequence[float] | None = None,
    sets: LabelSets | None = None,
) -> tuple[list[Agreement], Agreement, list[Agreement]]:
    """Compare networks with their logit ensemble and with its members; no label is read.

    With one logit per image a class is its sign.

    Parameters
    ----------
    members
        The networks of the ensemble.
    others
        Networks to compare with it, with its outputs.
    batches
        Images on the networks' device; labels are left aside.
    weights
        One share per member; equal ones where None.
    sets
        Which labels the members' outputs stand for, where they differ.

    Returns
    -------
    list of Agreement, Agreement, list of Agreement
        Of the members, the ensemble and the others.

    Raises
    ------
    DataError
        There is no image, the images do not fit the networks, or outputs are no class scores of equal number.
    """
    shares = list(weights) if weights is not None else [1.0 / len(members)] * len(members)
    networks = [evaluation_copy(m, shared=True) if any(p.training for p in m.modules()) else m for m in members]
    networks += [evaluation_copy(m, shared=True) if any(p.training for p in m.modules()) else m for m in others]
    tallies = [_Tally() for _ in range(len(networks) + 1)]
    layouts: list[torch.memory_format] = []
    with torch.inference_mode():
        for inputs, _ in batches:
            layouts = layouts or [checked_layout(model, take_samples(inputs, slice(0, 1))) for model in networks]
            outputs = [
                run_network(model, in_layout(inputs, layout)).float()
                for model, layout in zip(networks, layouts, strict=True)
            ]
            own, rest = outputs[: len(members)], outputs[len(members) :]
            ensemble = mean_logits(own, shares) if sets is None else sets.join(own, shares, 1)
            own = own if sets is None else sets.of_outputs(own)
            if any(logits.shape != ensemble.shape for logits in rest):
                raise DataError("a network has other outputs than the ensemble it is compared with")
            predicted = [_probabilities(logits).argmax(1) for logits in own]
            wanted = _probabilities(ensemble)
            for tally, logits in zip(tallies, [*own, ensemble, *rest], strict=True):
                tally.add(logits, wanted, predicted)
    agreements = [tally.agreement() for tally in tallies]
    return agreements[: len(members)], agreements[len(members)], agreements[len(members) + 1 :]


class _Tally:
    """Sums over batches, kept on the device until the end."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: Tensor | None = None

    def add(self, logits: Tensor, wanted: Tensor, predicted: Sequence[Tensor]) -> None:
        """Take in one batch: logits (N, C), the ensemble's probabilities (N, C) and the members' classes (N,)."""
        probabilities = _probabilities(logits)
        classes = probabilities.argmax(1)
        # What the ensemble gives no probability is not counted, even where a member excludes it.
        logs = torch.where(wanted > 0, probabilities.log(), 0.0)
        same = [(classes == other).double().sum() for other in (wanted.argmax(1), *predicted)]
        sums = torch.stack([*same, probabilities.amax(1).double().sum(), -(wanted * logs).double().sum()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._count += len(logits)

    def agreement(self) -> Agreement:
        """Fetch the sums and divide."""
        if self._sums is None:
            raise DataError("there is no image to evaluate on")
        ensemble, *members, confidence, disagreement = (self._sums.cpu() / self._count).tolist()
        return Agreement(ensemble, tuple(members), confidence, disagreement, self._count)


def _probabilities(logits: Tensor) -> Tensor:
    """Turn logits (N, C) into probabilities; one logit means two classes."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    return logits.softmax(1)
