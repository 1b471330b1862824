"""Images that stay on the disk until they are needed: what their kinds have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from depfuse.data.memory import too_much
from depfuse.errors import DataError
from depfuse.text import counted

HELD_BYTES = 2**25  # of decoded images; fewer are held in memory


class StoredImages(ABC):
    """Images of one shape, as an array (N, C, H, W) uint8 of which parts are decoded when they are asked for."""

    shape: tuple[int, int, int, int]

    @property
    @abstractmethod
    def example(self) -> str:
        """Name of one of them, or of where they are, for messages."""

    @abstractmethod
    def take(self, index: slice | Tensor) -> StoredImages:
        """Select images by number (n,), in that order, or a range of them; nothing is decoded."""

    @abstractmethod
    def fill(self, images: Tensor) -> None:
        """Decode all of them into a tensor (N, C, H, W) uint8.

        Raises
        ------
        DataError
            An image cannot be read, or has another shape.
        """

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the decoded images."""
        return torch.uint8

    @property
    def nbytes(self) -> int:
        """Bytes that all of them take once they are decoded."""
        count, channels, height, width = self.shape
        return count * channels * height * width

    def decoded(self) -> Tensor:
        """Decode all of them: (N, C, H, W) uint8.

        Raises
        ------
        DataError
            See `fill`; or memory does not suffice.
        """
        if excess := too_much(self.nbytes):
            raise DataError(
                f"{counted(len(self), 'image')} as large as {self.example} need {excess}: give fewer or smaller ones"
            )
        images = torch.empty(self.shape, dtype=torch.uint8)
        self.fill(images)
        return images

    def held(self) -> StoredImages | Tensor:
        """Decode them where all of them take no more than `HELD_BYTES`; else leave them where they are."""
        return self.decoded() if self.nbytes <= HELD_BYTES else self

    def __getitem__(self, index: Any) -> Tensor:
        """Decode what an index of the array selects."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(first, int):
            return self.take(torch.tensor([first])).decoded()[(0, *rest)]
        chosen = self.take(first) if isinstance(first, (slice, Tensor)) else self
        return chosen.decoded()[(slice(None), *rest) if chosen is not self else index]
