"""Samples told by what they hold: the same picture may come from two objects, or twice from one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from depfuse.data.inputs import count_samples
from depfuse.data.loader import Loader
from depfuse.networks.forward import Called


def are_among(samples: Loader, others: Loader) -> Tensor:
    """Tell for each sample (N,) whether a network is given the same for one of the others, bit for bit.

    In the order of the samples, as they are before any augmentation.
    """
    known = set(_digests(others))
    return torch.tensor([digest in known for digest in _digests(samples)])


def _digests(samples: Loader) -> Iterator[bytes]:
    for batch, _ in samples.between(0, samples.count):
        inputs = batch.batch if isinstance(batch, Called) else batch
        count = count_samples(inputs)
        digests = [hashlib.blake2b(digest_size=16) for _ in range(count)]
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == count:
                for digest, sample in zip(digests, leaf.contiguous().cpu(), strict=True):
                    digest.update(repr((sample.dtype, tuple(sample.shape))).encode())
                    digest.update(sample.reshape(-1).view(torch.uint8).numpy())
        yield from (digest.digest() for digest in digests)
