"""Which tensors of a network's output count: chosen by the user, or found where an output is a structure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from depfuse.errors import RecipeError
from depfuse.networks.copying import evaluation_copy, unwrap
from depfuse.networks.forward import SELECTING
from depfuse.tasks.weighted import pack

ScoresFunction = Callable[[Any], Tensor]
"""Output of a network -> the tensor (N, ...) that counts."""
NAMES = ("logits", "out")  # of the outputs that count, as Hugging Face's and torchvision's networks call them
AUXILIARY = "aux"  # how names of auxiliary outputs begin, as in torchvision's networks
BOX = "box"  # in names of boxes, which a detector has beside its logits, as Hugging Face's `pred_boxes`
AUXILIARY_WEIGHT = 0.4  # of an auxiliary output beside the main one (Zhao et al. 2017, section 3.3)
LEVEL_WEIGHT = 0.5  # of a map, relative to the next larger one of deep supervision (Isensee et al. 2021, methods)


class Selection:
    """A forward hook that replaces the output of a network by the tensor that counts."""

    def __init__(self, scores: ScoresFunction) -> None:
        self.scores = scores

    def __call__(self, network: nn.Module, inputs: Any, output: Any) -> Tensor:
        """Select from an output."""
        return self.scores(output)


@dataclasses.dataclass(frozen=True)
class Entry:
    """Scores by the name or number of an entry of a mapping, an object or a sequence."""

    key: Any

    def __call__(self, output: Any) -> Tensor:
        """Take the entry."""
        entry: Tensor = getattr(output, self.key) if _has_fields(output) else output[self.key]
        return entry


@dataclasses.dataclass(frozen=True)
class Counted:
    """A tensor of an output that counts: the keys that lead to it, how much it counts, and the axis of its channels."""

    keys: tuple[Any, ...]
    weight: float = 1.0
    axis: int = 1

    @property
    def name(self) -> str:
        """The keys, with dots between."""
        return ".".join(map(str, self.keys))

    def __call__(self, output: Any) -> Tensor:
        """Take the tensor, its channels as axis 1."""
        for key in self.keys:
            output = Entry(key)(output)
        found: Tensor = output
        return found if self.axis == 1 else found.movedim(self.axis, 1)


@dataclasses.dataclass(frozen=True)
class ChannelsFirst:
    """Scores of a function of the user's with the axis of their channels moved to 1."""

    scores: ScoresFunction
    axis: int

    def __call__(self, output: Any) -> Tensor:
        """Take the scores."""
        return self.scores(output).movedim(self.axis, 1)


@dataclasses.dataclass(frozen=True)
class Packed:
    """Scores that are all the tensors that count, one behind the other in a row (N, M)."""

    tensors: tuple[Counted, ...]

    def __call__(self, output: Any) -> Tensor:
        """Take and pack them."""
        return pack([counted(output) for counted in self.tensors])


@dataclasses.dataclass(frozen=True)
class AfterCall:
    """Scores of what a function of the user's makes of a network's output, which no hook of the network sees."""

    scores: ScoresFunction

    def __call__(self, output: Any) -> Tensor:
        """Take them."""
        return self.scores(output)


def counted_of(scores: ScoresFunction, *, made: bool) -> ScoresFunction:
    """Take what counts after a function of the user's has `made` the output, or as the network returns it."""
    return AfterCall(scores) if made else scores


def select(networks: Sequence[nn.Module], scores: ScoresFunction | None) -> None:
    """Let networks return the tensor that counts, from now on; their tensors and names stay."""
    for network in networks if scores is not None else ():
        assert scores is not None
        inner = unwrap(network)
        if isinstance(scores, AfterCall):
            setattr(network, SELECTING, scores)
        elif not _selections(inner):
            inner.register_forward_hook(Selection(scores))


def deselect(network: nn.Module) -> nn.Module:
    """Let a network return its whole output again."""
    inner = unwrap(network)
    for number in _selections(inner):
        del inner._forward_hooks[number]
    vars(network).pop(SELECTING, None)
    return network


def selected(networks: Sequence[nn.Module], scores: ScoresFunction | None) -> Sequence[nn.Module]:
    """Copy networks, with shared tensors, into ones that return the tensor that counts; the same where all do."""
    if scores is None:
        return networks
    copies = [deselect(evaluation_copy(network, shared=True)) for network in networks]
    select(copies, scores)
    return copies


@contextmanager
def whole_outputs(network: nn.Module) -> Iterator[None]:
    """Let a network return its whole output within the block: all of it says which channels can be permuted."""
    hooks = unwrap(network)._forward_hooks
    selections = {number: hooks.pop(number) for number in _selections(unwrap(network))}
    after_call = vars(network).pop(SELECTING, None)
    try:
        yield
    finally:
        hooks.update(selections)
        if after_call is not None:
            setattr(network, SELECTING, after_call)


def find_scores(output: Any) -> ScoresFunction | None:
    """Find what of an output counts: an entry `logits` or `out`, or the only floating-point tensor; None of a tensor.

    An output in which several tensors may count has no such: None, too.
    """
    if isinstance(output, Tensor):
        return None
    entries = _entries(output)
    for name in NAMES:
        if isinstance(entries.get(name), Tensor):
            return Entry(name)
    tensors = [key for key, entry in entries.items() if isinstance(entry, Tensor) and entry.is_floating_point()]
    return Entry(tensors[0]) if len(tensors) == 1 else None


def find_counted(output: Any, images: int, *, named: bool = True) -> tuple[Counted, ...]:
    """Find the tensors of a structure that count, each with its weight; none where it is a tensor.

    Those count that are of floating point and have an entry for each image. Where an entry `logits` or `out` is there,
    it counts, and beside it auxiliary ones and boxes (entries with `box` in their names) alone. Auxiliary outputs count
    less, and so do maps of as many channels as a larger one has.

    Parameters
    ----------
    output
        What a network returns.
    images
        For so many images.
    named
        Whether entries `logits` and `out` leave others out.
    """
    if isinstance(output, Tensor):
        return ()
    found = [keys for keys, leaf in _leaves(output) if leaf.is_floating_point() and leaf.shape[:1] == (images,)]
    main = next(((name,) for name in NAMES if named and (name,) in found), None)
    helping = [keys for keys in found if any(str(key).startswith(AUXILIARY) for key in keys)]
    if main is not None:
        boxes = [keys for keys in found if keys not in helping and any(BOX in str(key).lower() for key in keys)]
        found = [main, *(keys for keys in (*boxes, *helping) if keys != main)]
    sizes = _levels([Counted(keys)(output) for keys in found if keys not in helping])
    levels = iter(sizes)
    return tuple(Counted(keys, AUXILIARY_WEIGHT if keys in helping else LEVEL_WEIGHT ** next(levels)) for keys in found)


def _levels(tensors: Sequence[Tensor]) -> list[int]:
    """Count, for each map (N, C, ...), the sizes of larger ones with as many channels and dimensions; 0 of rows."""
    return [
        len({
            other.shape[2:].numel() for other in tensors
            if other.dim() == own.dim() and other.shape[1] == own.shape[1]
            and other.shape[2:].numel() > own.shape[2:].numel()
        }) if own.dim() > 2 else 0
        for own in tensors
    ]  # fmt: skip


def _leaves(output: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """List the tensors of a structure with the keys that lead to them."""
    if isinstance(output, Tensor):
        yield keys, output
        return
    for key, entry in _entries(output).items():
        yield from _leaves(entry, (*keys, key))


def check_scores(scores: ScoresFunction, output: Any) -> Tensor:
    """Return the tensor that a function of the user's selects from an output; raise `RecipeError` where it fails."""
    try:
        found = scores(output)
    except Exception as error:  # whatever the user's function raises
        raise RecipeError(
            f"`scores` fails on an output of type {type(output).__name__} ({type(error).__name__}: {error}): give a "
            "function of one output of the network"
        ) from error
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() == 0:
        kind = f"{found.dtype} of {found.dim()} dimensions" if isinstance(found, Tensor) else type(found).__name__
        raise RecipeError(f"`scores` gives a {kind}: it must give a floating-point tensor with an entry for each image")
    return found


def _entries(output: Any) -> dict[Any, Any]:
    """List the entries of an output by what `Entry` takes them by."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return {name: getattr(output, name) for name in output._fields}
    if isinstance(output, (tuple, list)):
        return dict(enumerate(output))
    if dataclasses.is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return dict(getattr(output, "__dict__", {}))


def _has_fields(output: Any) -> bool:
    """Tell whether the entries of an output are attributes: of a named tuple, or of any object that is no mapping."""
    if isinstance(output, (tuple, list)):
        return hasattr(output, "_fields")
    return not isinstance(output, Mapping)


def _selections(network: nn.Module) -> list[int]:
    return [number for number, hook in network._forward_hooks.items() if isinstance(hook, Selection)]
