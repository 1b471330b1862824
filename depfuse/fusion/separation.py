r"""Prove that parents side by side in one network do not affect each other.

The smallest example is a hidden layer of two channels per parent. Between two linear layers with ReLU, a network that
holds all four computes both parents, and the mean of the second layers gives the mean of their outputs. With a softmax
over the hidden channels it does not: each parent's channels change what the other's are divided by.

With f_p the function of parent p, and c(s) that of the child with shares s, these must hold for unrelated parents, in
float64 on generic values (`generic.py`):

- a wider network that holds parent p alone computes f_p: refits of the child read such networks;
- c(e_p) = f_p, for the shares e_p that are one for parent p: the others' channels have no effect;
- c(s) = f_1 for any shares, where all parents are the first: duplicated channels count once;
- where nothing is merged, c(s) = \sum_p s_p f_p: the child is the ensemble of its parents' logits.

The last of them, or else the second, is then checked on the parents themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from depfuse.align.coupling import Couplings
from depfuse.data.inputs import map_tensors
from depfuse.ensemble.label_sets import LabelSets
from depfuse.fusion.arrangement import Arrangement, with_state
from depfuse.groups import ChannelGroups
from depfuse.groups.generic_values import GenericNetwork
from depfuse.groups.mixing import UNFIT, Fault, compared, not_taken, outputs_of
from depfuse.merge.average import average
from depfuse.networks.copying import evaluation_copy, fit_example
from depfuse.networks.forward import Example


class SeparationProof:
    """Compare a child with its parents, on generic values and as they are.

    Parameters
    ----------
    models
        The parents, with their channels in one order.
    example
        An input (1, ...).
    labels, template
        As `average` takes them, the template at the parents' width.
    shares
        The parents' shares in the child.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        example: Example,
        labels: LabelSets | None,
        template: nn.Module | None,
        shares: Sequence[float],
        seed: int,
    ) -> None:
        self._labels = labels
        self._template = None if template is None else evaluation_copy(template, torch.float64).cpu()
        self._shares = tuple(shares)
        self._parents = [evaluation_copy(model, torch.float64).cpu() for model in models]
        generator = torch.Generator().manual_seed(seed)
        self._example = fit_example(example, self._parents[0])
        self._input = map_tensors(partial(_noise, generator=generator), self._example)
        self._generic = [
            with_state(parent, GenericNetwork(parent, self._input, None, seed, draw).state)
            for draw, parent in enumerate(self._parents, start=1)
        ]

    def fault(self, arrangement: Arrangement, *, whole: bool) -> Fault | None:
        """Find what is wrong with an arrangement; `whole`: nothing is merged in it."""
        count = len(self._parents)
        mixed = tuple((number + 1) / (count * (count + 1) / 2) for number in range(count))
        generic = self._sharing(arrangement) if whole else self._generic
        try:
            return self._on(arrangement, generic, self._input, mixed, whole, generic=True) or self._on(
                arrangement, self._parents, self._example, self._shares, whole
            )
        except UNFIT as error:  # where a network is made wider, or averaged
            return not_taken(self._parents[0], error)

    def _on(
        self,
        arrangement: Arrangement,
        parents: Sequence[nn.Module],
        inputs: Example,
        shares: Sequence[float],
        whole: bool,
        *,
        generic: bool = False,
    ) -> Fault | None:
        wide = [arrangement.widen(parent, number) for number, parent in enumerate(parents)]
        expected = [outputs_of(parent, inputs) for parent in parents]
        if generic:
            for parent, wider, outputs in zip(parents, wide, expected, strict=True):
                if fault := compared(wider, outputs, inputs, parent):
                    return fault
        if whole:
            return compared(self._child(arrangement, wide, shares), self._mean(expected, shares), inputs, parents[0])
        for number, parent in enumerate(parents):
            alone = tuple(float(other == number) for other in range(len(parents)))
            child = self._child(arrangement, wide, alone)
            if fault := compared(child, self._mean(expected, alone), inputs, parent):
                return fault
        if not generic:
            return None
        alike = [_like(parents[0], parent) for parent in parents]
        expected = [outputs_of(parent, inputs) for parent in alike]
        wide = [arrangement.widen(parent, number) for number, parent in enumerate(alike)]
        return compared(self._child(arrangement, wide, shares), self._mean(expected, shares), inputs, alike[0])

    def _sharing(self, arrangement: Arrangement) -> Sequence[nn.Module]:
        """Give generic parents equal buffers where the parents have such, of those that no channel goes along with.

        What all parents normalise their input by, say, is as good as one; what only some of them share is not.
        """
        first, *others = (dict(parent.named_buffers()) for parent in self._parents)
        equal = {
            key
            for key, tensor in first.items()
            if not arrangement.owned(key) and all(torch.equal(tensor, buffers[key]) for buffers in others)
        }
        shared = {key: tensor for key, tensor in self._generic[0].state_dict().items() if key in equal}
        return [with_state(own, {**own.state_dict(), **shared}) for own in self._generic]

    def _child(self, arrangement: Arrangement, wide: Sequence[nn.Module], shares: Sequence[float]) -> nn.Module:
        template = None if self._template is None else arrangement.widen(self._template)
        nothing: list[Couplings] = [{} for _ in wide]
        return average(wide, ChannelGroups(()), nothing, shares, self._labels, template, arrangement.owners)

    def _mean(self, outputs: Sequence[Sequence[Tensor]], shares: Sequence[float]) -> list[Tensor]:
        """Compute the ensemble's outputs; those of labels that a parent does not know are the others'."""
        labels = self._labels
        means = []
        for each in zip(*outputs, strict=True):
            sizes = [output.shape[1] if output.dim() > 1 else 0 for output in each]
            if labels is not None and sizes == [len(own) for own in labels.sets]:
                means.append(labels.join(each, shares, 1))
            else:
                means.append(sum(share * output for share, output in zip(shares, each, strict=True)))
        return means


def _noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Draw normal numbers in place of a tensor's; indices stay."""
    if not tensor.is_floating_point():
        return tensor
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)


def _like(first: nn.Module, parent: nn.Module) -> nn.Module:
    """Copy a parent with the tensors of the first, but for its head where it has other labels."""
    state = first.state_dict()
    parent_state = parent.state_dict()
    return with_state(
        parent,
        {key: state[key] if state[key].shape == parent_state[key].shape else parent_state[key] for key in parent_state},
    )
