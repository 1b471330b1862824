"""Tensors in nested values."""

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from depfuse.networks.leaves import tensors_in

Pair = namedtuple("Pair", "first second")
ONE, TWO, THREE = torch.ones(1), nn.Parameter(torch.ones(2)), torch.ones(3)


@pytest.mark.parametrize(
    "values",
    [
        (),
        ((ONE, 2, None), {}),
        ((ONE, [TWO, (THREE, "x")], slice(None)), {"b": THREE, "a": [ONE]}),
        (Pair(TWO, (ONE, THREE)), None),
        (OrderedDict(b=ONE, a=Pair(THREE, 1.0)), {"nested": {"deep": (TWO,)}}),
        ((torch.float32, torch.Size([2]), 1j, True), {"out": ONE}),
    ],
)
def test_tensors_in_lists_the_tensors_that_tree_leaves_does_in_its_order(values: tuple[Any, ...]) -> None:
    wanted = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    found = tensors_in(*values)
    assert len(found) == len(wanted)
    assert all(one is other for one, other in zip(found, wanted, strict=True))
