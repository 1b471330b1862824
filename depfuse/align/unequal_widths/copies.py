"""Changes of a network to a width that no parent has: similar channels join, strong ones are copied."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from depfuse.align.coupling import Coupling
from depfuse.align.transport import checked


def cluster_channels(cost: Tensor, targets: int) -> Coupling:
    """Cluster the channels of one network, each cluster one target: average linkage on their own costs.

    Parameters
    ----------
    cost
        (n, n) between the channels, lower where they are more similar.
    targets
        Number of clusters, at most n.
    """
    from scipy.cluster.hierarchy import fcluster, linkage  # here, as few fusions need them
    from scipy.spatial.distance import squareform

    values = checked(cost)
    distances = (values + values.T) / 2
    distances -= distances.min()
    np.fill_diagonal(distances, 0.0)
    size = len(values)
    labels = (
        np.arange(size)
        if size == targets
        else fcluster(linkage(squareform(distances, checks=False), "average"), targets, criterion="maxclust")
    )
    numbers = np.unique(labels, return_inverse=True)[1]
    # Ties may leave fewer clusters than were asked for: the largest are taken apart.
    while numbers.max() + 1 < targets:
        numbers[np.flatnonzero(numbers == np.bincount(numbers).argmax())[0]] = numbers.max() + 1
    plan = torch.zeros(targets, size, dtype=torch.float64)
    plan[torch.from_numpy(numbers), torch.arange(size)] = 1.0 / size
    return Coupling(plan=plan)


def copy_channels(strength: Tensor, targets: int) -> Coupling:
    """Copy each channel of one network to one target or several, the strongest first; its function stays.

    Parameters
    ----------
    strength
        (n,) weight of each channel.
    targets
        At least n.
    """
    size = len(strength)
    order = torch.argsort(strength.cpu(), descending=True)
    sources = torch.cat([torch.arange(size), order.repeat(-(-targets // size))[: targets - size]])
    plan = torch.zeros(targets, size, dtype=torch.float64)
    plan[torch.arange(targets), sources] = 1.0 / targets
    return Coupling(plan=plan)
