"""Estimate without labels how well each of several networks knows each class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def estimate_recall(scores: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    r"""Estimate how much each network's word counts for each class, from its scores for unlabelled images.

    A network that never saw a class predicts it nowhere, and predicts others where it is: that speaks against the class
    as if it knew. With probabilities p of network k for image i and entropies H, the class of an image is first
    estimated by all, each as far as it is confident, and then how often each finds it, the recall:

    .. math::
        r_{ic} \propto \sum_k s_k\, e^{-H(p_{ki})} p_{kic}, \qquad
        w_{kc} \propto s_k \frac{\sum_i r_{ic}\, p_{kic}}{\sum_i r_{ic}}, \qquad \sum_k w_{kc} = 1.

    This is the first step of the estimate of Dawid & Skene (1979), with the diagonal of their confusion matrices only.

    Parameters
    ----------
    scores
        Each network's class scores (N, C).
    shares
        One weight per network.

    Returns
    -------
    Tensor
        Weights (networks, C) in float64, those of a class sum to 1.
    """
    probabilities = torch.stack([own.double().softmax(1) for own in scores])
    weights = torch.tensor(shares, dtype=torch.float64, device=probabilities.device)[:, None, None]
    confidence = (-torch.special.entr(probabilities).sum(2, keepdim=True)).exp()
    classes = (weights * confidence * probabilities).sum(0)
    classes = classes / classes.sum(1, keepdim=True)
    recall = weights[:, 0] * (classes * probabilities).sum(1)
    normalised: Tensor = recall / recall.sum(0).clamp_min(torch.finfo(recall.dtype).tiny)
    return normalised
