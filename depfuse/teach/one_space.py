r"""Bring parents' embeddings into one space, where their mean means something.

What embeddings tell is which images are alike, and that does not change under a rotation, so that two parents trained
apart have theirs in two frames. The orthogonal R that brings directions :math:`v_i` of one parent nearest to
:math:`u_i` of another, :math:`\min_R \sum_i \lVert u_i - R v_i \rVert^2`, is :math:`A B^\top` of the singular value
decomposition :math:`\sum_i u_i v_i^\top = A S B^\top` (orthogonal Procrustes; Schönemann 1966).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depfuse.data.loader import Loader
from depfuse.networks.forward import run_network
from depfuse.networks.running import evaluating
from depfuse.teach.heads import last_layer

FEWEST = 16  # images that a rotation is found from
PLACES = 16  # of an image's map, drawn at random
GAIN = 0.01  # least gain of the mean cosine on images that the rotation was not found from
EQUAL = 1e-3  # largest deviation, relative to the largest output, of a network's outputs from the rotated ones


@dataclass(frozen=True)
class Rotated:
    """A parent whose embeddings were brought into the space of the first one.

    Attributes
    ----------
    parent
        Its number, from 0.
    before, after
        Mean cosine of its embeddings and the first parent's, on images that the rotation was not found from.
    """

    parent: int
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"parent {self.parent + 1} was rotated into the space of parent 1 (mean cosine {self.before:.2f} before,"
            f" {self.after:.2f} after)"
        )


def bring_into_one_space(networks: Sequence[nn.Module], images: Loader) -> list[Rotated]:
    """Rotate parents' embeddings (N, D, ...) into the space of the first, in place.

    The rotation is folded into the last layer with weights. A parent stays as it is where the embeddings come no nearer
    on the second half of the images, where that layer is neither linear nor a convolution, or where what follows it
    does more than set lengths, so that rotating the layer does not rotate the embeddings.

    Parameters
    ----------
    networks
        Copies of the parents, in evaluation mode, whose outputs are embeddings of one width.
    images
        Unlabelled images.

    Returns
    -------
    list
        What was rotated.
    """
    rotated: list[Rotated] = []
    if images.count < FEWEST:
        return rotated
    with torch.no_grad(), evaluating(*networks):
        first = _directions(networks[0], images)
        half = len(first) // 2
        for number, network in enumerate(networks[1:], start=1):
            own = _directions(network, images)
            if own.shape != first.shape:
                continue
            turned = own[half:] @ rotation(first[:half], own[:half]).T
            before, after = ((first[half:] * other).sum(1).mean().item() for other in (own[half:], turned))
            if after >= before + GAIN and _rotate(network, rotation(first, own), images):
                rotated.append(Rotated(number, before, after))
    return rotated


def rotation(fixed: Tensor, moved: Tensor) -> Tensor:
    """Find the orthogonal R (D, D) that brings rows (N, D) nearest to fixed ones: `moved @ R.T`."""
    left, _, right = torch.linalg.svd(fixed.T @ moved)
    found: Tensor = left @ right
    return found


def _directions(network: nn.Module, images: Loader) -> Tensor:
    """Collect directions (n, D) of a network's embeddings in float64, at some places where they are maps."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for batch, _ in images:
        rows = F.normalize(run_network(network, batch).double(), dim=1)
        if rows.dim() > 2:
            rows = rows.flatten(2)
            kept = torch.randperm(rows.shape[2], generator=generator)[:PLACES]
            rows = rows[..., kept.to(rows.device)].movedim(1, 2).flatten(0, 1)
        found.append(rows)
    return torch.cat(found)


def _rotate(network: nn.Module, turn: Tensor, images: Loader) -> bool:
    """Fold a rotation into the last layer; undo it where the embeddings do not turn as well, and tell whether."""
    example = images.example(FEWEST)
    layer = last_layer(network, example)
    if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or len(layer.weight) != len(turn):
        return False
    tensors = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    saved = [tensor.clone() for tensor in tensors]
    wanted = torch.einsum("ij,nj...->ni...", turn, run_network(network, example).double())
    for tensor in tensors:
        tensor.copy_(torch.einsum("ij,j...->i...", turn, tensor.double()))
    error = (run_network(network, example).double() - wanted).abs().max()
    if float(error) <= EQUAL * float(wanted.abs().max()):
        return True
    for tensor, before in zip(tensors, saved, strict=True):
        tensor.copy_(before)
    return False
