"""Join the outputs of parents that know different labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depfuse.errors import RecipeError


@dataclass(frozen=True)
class LabelAxis:
    """Where the labels are in a tensor: an axis of blocks, each of which has all of them.

    Of the head of a detector that compares places with several anchors there is one block for each anchor; elsewhere
    there is one.
    """

    axis: int
    blocks: int = 1

    def rows(self, tensor: Tensor) -> Tensor:
        """Bring the labels of a tensor to the front: (labels, blocks, ...)."""
        front = tensor.movedim(self.axis, 0)
        return front.reshape(self.blocks, -1, *front.shape[1:]).movedim(1, 0)

    def tensor(self, rows: Tensor) -> Tensor:
        """Invert `rows`."""
        return rows.movedim(0, 1).flatten(0, 1).movedim(0, self.axis)


@dataclass(frozen=True)
class LabelSets:
    """For every parent in order, the labels that its outputs stand for.

    The child has one output for every label that any parent knows, in ascending order; `others` are labels that it has
    besides.
    """

    sets: tuple[tuple[int, ...], ...]
    others: tuple[int, ...] = ()

    @classmethod
    def create(cls, sets: Sequence[Sequence[int] | Tensor]) -> LabelSets:
        """Check the labels and make them label sets; those of a parent may be a list, an array or a tensor.

        Raises
        ------
        RecipeError
            A parent has no label, or one label twice, or these are no lists.
        """
        if not isinstance(sets, Iterable) or not all(isinstance(labels, Iterable) for labels in sets):
            raise RecipeError("`labels` must be a list for each parent: the labels of its outputs, in their order")
        sets = [labels.tolist() if hasattr(labels, "tolist") else tuple(labels) for labels in sets]
        for number, labels in enumerate(sets, start=1):
            if not labels or len(set(labels)) != len(labels):
                raise RecipeError(f"the labels of parent {number} must be one or more, each of them once: {labels}")
        return cls(tuple(tuple(labels) for labels in sets))

    @property
    def joint(self) -> tuple[int, ...]:
        """All labels, in ascending order."""
        return tuple(sorted({label for labels in (*self.sets, self.others) for label in labels}))

    def of(self, *parents: int) -> LabelSets:
        """Select the sets of some of the parents, with the joint outputs of all."""
        return LabelSets(tuple(self.sets[parent] for parent in parents), self.joint)

    @property
    def same(self) -> bool:
        """Whether all parents know the same labels in the same order, which is then that of the child."""
        return all(labels == self.joint for labels in self.sets)

    def columns(self, parent: int) -> Tensor:
        """Find the indices, int64, of a parent's outputs among the child's."""
        places = {label: place for place, label in enumerate(self.joint)}
        return torch.tensor([places[label] for label in self.sets[parent]])

    def join(self, tensors: Sequence[Tensor], shares: Sequence[float], axis: int) -> Tensor:
        """Put the parents' outputs, or the weights that give them, side by side.

        Where several parents know a label, its entry is their weighted mean.

        Parameters
        ----------
        tensors
            One per parent, with its labels on `axis`.
        shares
            One weight per parent; those of the parents that know a label are made to sum to one.
        axis
            The axis of the labels.
        """
        first = tensors[0].movedim(axis, 0)
        joint = first.new_zeros(len(self.joint), *first.shape[1:])
        total = torch.zeros(len(self.joint), dtype=torch.float64)
        for parent, (tensor, share) in enumerate(zip(tensors, shares, strict=True)):
            columns = self.columns(parent)
            joint.index_add_(0, columns.to(joint.device), (share * tensor).movedim(axis, 0))
            total[columns] += share
        scale = torch.where(total > 0, 1.0 / total, 0.0).to(joint)
        return (joint * scale.reshape(-1, *[1] * (joint.dim() - 1))).movedim(0, axis)

    def join_at(self, tensors: Sequence[Tensor], shares: Sequence[float], place: LabelAxis) -> Tensor:
        """Put tensors side by side as `join` does, block by block."""
        return place.tensor(self.join([place.rows(tensor) for tensor in tensors], shares, 0))

    def axis(self, key: str, child: Mapping[str, Tensor], parents: Sequence[Mapping[str, Tensor]]) -> LabelAxis:
        """Find the labels in a tensor, from its sizes in the child and in the parents.

        Raises
        ------
        RecipeError
            The sizes differ in another way than the numbers of labels do.
        """
        sizes = [tuple(tensors[key].shape) for tensors in (child, *parents)]
        counts = [len(self.joint), *(len(labels) for labels in self.sets)]
        for axis in range(len(sizes[0])):
            rest = {size[:axis] + size[axis + 1 :] for size in sizes}
            blocks = sizes[0][axis] // counts[0]
            if len(rest) == 1 and blocks and [size[axis] for size in sizes] == [blocks * count for count in counts]:
                return LabelAxis(axis, blocks)
        raise RecipeError(f"{key} has sizes {sizes} in the child and the parents, but these have {counts} labels")

    def of_outputs(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Widen the parents' logits (N, classes, ...) to all labels: -inf where a parent does not know one."""
        widened = []
        for parent, logits in enumerate(outputs):
            columns = self.columns(parent).to(logits.device)
            wide = logits.new_full((len(logits), len(self.joint), *logits.shape[2:]), -torch.inf)
            widened.append(wide.index_copy(1, columns, logits))
        return widened

    def check(self, models: Sequence[nn.Module], template: nn.Module | None) -> None:
        """Raise `RecipeError` unless there is one set per parent and, where they differ, a network to fill."""
        if len(self.sets) != len(models):
            raise RecipeError(f"{len(self.sets)} sets of classes for {len(models)} parents: give one per parent")
        if not self.same and all(len(labels) == len(self.joint) for labels in self.sets):
            raise RecipeError(
                "the parents' labels are not in ascending order, and the rows of their last layers do not bring them"
                " into it: put their outputs into one order first"
            )
        if template is None and not self.same:
            raise RecipeError(
                "parents with different labels need a `template`: a network with an output for each label"
            )
