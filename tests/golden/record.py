"""What is recorded of a case: digests of its tensors, and the few numbers that other kinds of machines agree on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .product import digits, load_network, to_floats


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes
    ----------
    codes
        Exit codes of its commands.
    exact
        What is the same on one kind of machine, to the last bit.
    outputs
        The child's, on four images.
    accuracy
        The child's, on the digits' test images; None where it has no ten outputs.
    chosen
        What was decided, not computed: which channel goes where, if couplings are permutations; which network to keep.
    """

    codes: list[int] = field(default_factory=list)
    exact: dict[str, Any] = field(default_factory=dict)
    outputs: list[list[float]] | None = None
    accuracy: float | None = None
    chosen: str | None = None

    @property
    def values(self) -> dict[str, Any]:
        """What other kinds of machines agree on up to rounding."""
        rounded = None if self.outputs is None else [[float(f"{x:.6g}") for x in row] for row in self.outputs]
        return {"codes": self.codes, "outputs": rounded, "accuracy": self.accuracy, "chosen": self.chosen}

    @property
    def record(self) -> dict[str, Any]:
        """What one kind of machine repeats."""
        return {"codes": self.codes, **self.exact}


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes, in the order of the names."""
    return tensors_digest((key, state[key]) for key in sorted(state))


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        values = tensor.detach().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def plain(value: Any) -> str:
    """A short digest of plain data."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def of_fusion(child: nn.Module, couplings: Sequence[Mapping[str, Any]]) -> Outcome:
    tensors, sources = [], []
    for number, own in enumerate(couplings):
        for group in sorted(own):
            coupling = own[group]
            for part, tensor in parts(coupling):
                tensors.append((f"{number} {group} {part}", tensor))
            if coupling.permutation is not None:
                sources.append([number, group, coupling.permutation.tolist()])
    exact = {"child": state_digest(child.state_dict()), "couplings": tensors_digest(tensors)}
    outputs, accuracy = judged(child)
    return Outcome(exact=exact, outputs=outputs, accuracy=accuracy, chosen=plain(sources) if sources else None)


def parts(coupling: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a coupling, whichever of the three kinds it is."""
    if coupling.permutation is not None:
        return [("permutation", coupling.permutation)]
    if coupling.plan is not None:
        return [("plan", coupling.plan)]
    return [("produces", coupling.maps.produces), ("consumes", coupling.maps.consumes)]


def of_child(path: Path, codes: list[int], exact: dict[str, Any], chosen: str | None = None) -> Outcome:
    child = load_network(path)
    outputs, accuracy = judged(child)
    return Outcome(codes, {"child": state_digest(child.state_dict()), **exact}, outputs, accuracy, chosen)


def judged(child: nn.Module) -> tuple[list[list[float]], float | None]:
    """A child's outputs on the first four test images, and its accuracy on all."""
    data = digits()
    with torch.no_grad():
        outputs = child.eval()(to_floats(data.test.images, data.preprocessing))
    accuracy = None
    if outputs.shape[1] == len(data.classes):
        accuracy = float(np.mean((outputs.argmax(1) == data.test.labels).numpy()))
    return outputs[:4].tolist(), accuracy
