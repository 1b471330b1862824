"""Random orders of images that depend on a seed and nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def order_of_class(count: int, seed: int, label: int) -> Tensor:
    """Draw an order of the images of a class, which does not depend on how many other classes have."""
    return torch.from_numpy(np.random.default_rng([seed, label]).permutation(count))
