"""Decisions about inputs: what the forward pass asks of token ids and masks alone, to which the answer is yes or no.

`if mask.all(): mask = None` takes one of two paths. The answer does not depend on parameters, so that no permutation
changes it; but a trace shows only the path that the example takes. The other one is run as well: the proof holds for
both, each decision turned round alone. Where the other path does not run (an assertion, a refusal of padding), or there
are many decisions, they fix channels as questions about activations do (`branching.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from depfuse.groups.tracing.overwrites import METADATA
from depfuse.networks.forward import Example, run_network
from depfuse.networks.leaves import tensors_in
from depfuse.networks.running import evaluating

YES_OR_NO = frozenset({
    torch.Tensor.__bool__, torch.Tensor.__contains__, torch.Tensor.equal, torch.Tensor.allclose,
    torch.Tensor.is_nonzero, torch.equal, torch.allclose, torch.is_nonzero,
})  # fmt: skip
MOST = 8  # decisions that are turned round


class Dependence(TorchFunctionMode):
    """Recorder, while it is active, of which tensors depend on inputs alone, and which are computed from others.

    Parameters
    ----------
    example
        Inputs; those that require gradients, or are among `others`, do not count.
    others
        Parameters, and whatever else is drawn at random.
    """

    def __init__(self, example: Example, others: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._given, self._computed = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self.mark(example, True)
        self.mark(list(others), False)

    def mark(self, values: Any, given: bool) -> None:
        """Note that values depend on inputs alone, or on something else."""
        for leaf in tensors_in(values):
            (self._given if given else self._computed)[leaf] = True

    def of(self, operands: Iterable[Tensor]) -> bool | None:
        """Tell whether operands depend on inputs alone (True), on something computed (False), or are constants."""
        depends = None
        for operand in operands:
            if operand.requires_grad or operand in self._computed:
                return False
            if operand in self._given:
                depends = True
        return depends


class Decisions(Dependence):
    """Counter of the decisions about inputs, one of which is turned round.

    Attributes
    ----------
    count
        How many there were so far.
    """

    def __init__(self, example: Example, others: Iterable[Tensor], turned: int | None = None) -> None:
        super().__init__(example, others)
        self.count: int = 0
        self._turned = turned

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run the function, count a decision and turn its answer round, or pass dependence on to its results."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, METADATA) and func not in YES_OR_NO:
            return result
        operands = tensors_in(args, kwargs)
        depends = self.of(operands)
        if depends and func in YES_OR_NO:
            self.count += 1
            return not result if self.count - 1 == self._turned else result
        if depends is not None:
            self.mark(operands[0] if func is torch.Tensor.__setitem__ else result, depends)
        return result


def others_run(model: nn.Module, example: Example) -> bool:
    """Tell whether a network runs on the example with each decision turned round, of which there are `MOST` at most."""
    floating = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    others = [*model.state_dict().values(), *model.parameters(), *model.buffers(), *floating]

    def decisions(turned: int | None) -> int:
        watch = Decisions(example, others, turned)
        with torch.no_grad(), evaluating(model), watch:
            run_network(model, example)
        return watch.count

    try:
        count = decisions(None)
        for turned in range(count if count <= MOST else 0):
            decisions(turned)
    except Exception:  # whatever the user's network raises where its inputs are not as they have to be
        return False
    return 0 < count <= MOST
