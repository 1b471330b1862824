"""Find the tensors of a network among all that a file holds, by its own names.

The names of a network and of a file are trees. A place of the file fits if every name of the network is found from
there. On the way, a level that has a single part which the other tree does not know is a wrapper (DataParallel, a
compiled or checkpointed layer, a LightningModule around the network) and is passed over, on either side.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from depfuse.errors import DepfuseWarning
from depfuse.io.norms import with_norms_of
from depfuse.io.weights import TOP, Place
from depfuse.models.origin import shown

COUNTER = "num_batches_tracked"  # of a BatchNorm; it is read nowhere in evaluation mode
# How sets of weights are preferred where several fit, by words in their keys; None is all others.
_PREFERENCES: tuple[tuple[str, str], ...] = (
    ("ema|swa|averaged?|avg|shadow", "as the average of a training's steps"),
    ("teacher", "as the teacher, which averages the student's steps"),
    ("best", "as the best of a training"),
)
_LATER = re.compile(r"(^|[._])(optim\w*|grads?|gradients?|momentum\w*|exp|init\w*|start|opt)($|[._])", re.IGNORECASE)
_MEASURES = re.compile(r"(^|_)(loss(es)?|criterion|criteria|metrics?|acc|accuracy)(_|$)", re.IGNORECASE)
_NUMBERED = re.compile(r"(arr_)?\d+")  # names of arrays that were given none
_PROFILED = ("total_ops", "total_params")  # what profilers count
_USUAL = {"module", "_orig_mod"}  # wrappers that are not worth a word
_FEW = 3


@dataclass
class Fit:
    """What a place of a file has for a network.

    Attributes
    ----------
    place
        Where the names begin.
    found
        Name in the network -> tensor.
    missing
        Names that the network alone has, counters of a BatchNorm aside.
    extra
        Name from the place on -> tensor that the network does not have.
    unlike
        Number of tensors of other shapes.
    wrappers
        Names that were passed over.
    """

    place: Place
    found: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    extra: dict[str, Tensor] = field(default_factory=dict)
    unlike: int = 0
    wrappers: list[str] = field(default_factory=list)

    @property
    def rank(self) -> tuple[int, ...]:
        """Order of fits, the best first, before it is asked which of several was meant."""
        return (len(self.missing), bool(self.unlike), len(self.extra))


def fit_weights(
    path: Path, top: Place, own: Mapping[str, Tensor], written: Mapping[str, str] | None = None, *, keyed: bool = True
) -> dict[str, Tensor] | None:
    """Find the tensors of a network in a file, and say in one line what was chosen, passed over or left out.

    Parameters
    ----------
    path
        The file's name for messages.
    top
        The place of the file to look in.
    own
        The network's state dict.
    written
        What its tensors are called in files, by their names in it, where those are others: looked for where its own
        names are not all there.
    keyed
        Whether the user can choose another set by its key.

    Returns
    -------
    dict or None
        Tensors by the network's own names: of the place that the user named, where they are there. Where no
        place has all of them, the place that has most is taken, without a word, and what it has beside them is there
        as well; None where no place has any.
    """
    top = with_norms_of(own, top)
    fits = _all_fits(top, own)
    if written and not any(_is_whole(fit) for fit in fits):
        other = {written[key]: tensor for key, tensor in own.items()}
        if any(_is_whole(fit) for fit in _all_fits(top, other)):
            names = {name: key for key, name in written.items()}
            found = fit_weights(path, top, other, keyed=keyed)
            return None if found is None else {names[name]: tensor for name, tensor in found.items()}
    if not fits:
        return _by_order(path, top, own)
    best = min(fit.rank for fit in fits)
    alike = [fit for fit in fits if fit.rank == best]
    alike = [fit for fit in alike if fit.place.is_named] or alike
    number, why = preferred([(fit.place.path, fit.found) for fit in alike])
    chosen = alike[number]
    if not _is_whole(chosen):
        return {**chosen.found, **chosen.extra}
    if said := _said(chosen, why, alike, fits, keyed):
        warnings.warn(f"{path}: {'; '.join(said)}", DepfuseWarning, stacklevel=4)
    return chosen.found


def _all_fits(top: Place, own: Mapping[str, Tensor]) -> list[Fit]:
    """Compare a network with every place of the file, until it fits one with or without what wraps it."""
    tree = Place()
    for key, tensor in own.items():
        tree.put(key).tensor = tensor
    fits = _fits(tree, top)
    while not any(_is_whole(fit) for fit in fits) and (inner := _only_part(tree)) is not None:
        tree = inner  # the network itself is wrapped
        fits += _fits(tree, top)
    return fits


def _by_order(path: Path, top: Place, own: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Take a list of arrays, as federated learning sends and saves them, for the state dict in its order.

    Of the shapes of all tensors, or of all but the counters of BatchNorm; None where no list of the file has them.
    """
    for keys in (list(own), [key for key in own if not key.endswith(COUNTER)]):
        shapes = [own[key].shape for key in keys]
        for place in top.places():
            tensors = list(place.own_tensors().values())
            numbered = [_NUMBERED.fullmatch(name) for name in place.parts]
            if all(numbered) and [tensor.shape for tensor in tensors] == shapes:
                warnings.warn(
                    f"{path}: its {len(tensors)} arrays have no names, and are taken in the order of the network's",
                    DepfuseWarning,
                    stacklevel=5,
                )
                return dict(zip(keys, tensors, strict=True))
    return None


def preferred(sets: Sequence[tuple[str, Mapping[str, Tensor]]]) -> tuple[int, str]:
    """Choose among sets of weights with the same names, by their keys in the file, and say why.

    Averages of parameters alone keep the running statistics with which a training began: such a set is no network where
    another one has them.
    """
    paths = [path for path, _ in sets]
    first = [number for number, path in enumerate(paths) if not _LATER.search(path)] or [0]
    counted = [number for number in first if not _is_uncounted(sets[number][1])]
    for words, why in _PREFERENCES:
        wanted = re.compile(rf"(^|[._\d])({words})($|[._\d])", re.IGNORECASE)
        if found := [number for number in first if wanted.search(paths[number])]:
            if kept := [number for number in found if number in counted or not counted]:
                return kept[0], why
            return counted[0], f"as BatchNorm has seen nothing in {shown(paths[found[0]])}"
    return (counted or first)[0], "as the first"


def _is_uncounted(state: Mapping[str, Tensor]) -> bool:
    """Tell whether BatchNorm's counters are there, and all at 0."""
    counters = [tensor for key, tensor in state.items() if key.endswith(COUNTER) and not tensor.is_meta]
    return bool(counters) and not any(bool(tensor.any()) for tensor in counters)


def _only_part(tree: Place) -> Place | None:
    """Return the one part of a tree, where that has several layers."""
    (part, *others) = tree.parts.values()
    layers = {key.rpartition(".")[0] for key in part.tensors()}
    return part if not others and len(layers) > 1 else None


def _is_whole(fit: Fit) -> bool:
    return not fit.missing and not fit.extra


def _fits(tree: Place, top: Place) -> list[Fit]:
    """Compare the network with every place of the file that has one of its first names."""
    fits = []
    for place in top.places():
        if tree.parts.keys() & place.parts.keys():
            fit = Fit(place)
            _compare(tree, place, "", fit)
            _leave_out(tree, fit)
            if fit.found:
                fits.append(fit)
    for fit in fits:
        _leave_out_other_sets(fit, fits)
    return fits


def _compare(own: Place, place: Place, name: str, fit: Fit) -> None:
    """Walk through both trees; `name` is that of the place in the file, from where the fit begins."""
    while own.parts and (inner := _wrapped(own, place)) is not None:
        fit.wrappers.append(inner.name)
        place, name = inner, f"{name}.{inner.name}".removeprefix(".")
    while place.parts and (inner := _wrapped(place, own)) is not None:
        own = inner
    for part, below in own.parts.items():
        there = place.parts.get(part)
        if there is None:
            keys = [f"{below.path}.{key}".rstrip(".") for key in below.tensors()]
            fit.missing += [key for key in keys if not key.endswith(COUNTER)]
            continue
        if below.tensor is not None:
            _take(below, there, fit)
        if below.parts:
            _compare(below, there, f"{name}.{part}".removeprefix("."), fit)
        elif there.parts and not there.is_whole:
            deeper = {key: tensor for key, tensor in there.own_tensors().items() if key}
            fit.extra |= _named(deeper, f"{name}.{part}")
    for part, there in place.parts.items():
        if part not in own.parts and not there.is_whole:
            fit.extra |= _named(there.own_tensors(), f"{name}.{part}")


def _wrapped(inner: Place, outer: Place) -> Place | None:
    """Find the one part of `outer` that holds what `inner` has, where `outer` is a wrapper; None if it is none.

    Beside that part, a wrapper may have single numbers such as a count of steps.
    """
    if inner.parts.keys() & outer.parts.keys():
        return None
    deeper = [part for part in outer.parts.values() if part.parts]
    others = [part for part in outer.parts.values() if not part.parts and not _is_number(part.tensor)]
    return deeper[0] if len(deeper) == 1 and not others and deeper[0].tensor is None else None


def _take(own: Place, there: Place, fit: Fit) -> None:
    tensor, wanted = there.tensor, own.tensor
    assert wanted is not None
    if tensor is None:
        fit.missing += [own.path] * (own.name != COUNTER)
        return
    if own.name == COUNTER and tensor.dim() and tensor.numel() <= 1:  # some programs keep a list of one or no number
        if tensor.numel() == 0:
            return
        tensor = tensor.reshape(())
    fit.unlike += tensor.shape != wanted.shape
    fit.found[own.path] = tensor


def _leave_out(tree: Place, fit: Fit) -> None:
    """Leave out what is no part of a network: counters, single numbers beside all layers, losses and metrics."""
    layers = {key.rpartition(".")[0] for key in tree.tensors()}
    beside: dict[str, set[str]] = {}
    for key, tensor in fit.extra.items():
        if _is_number(tensor):
            layer, _, name = key.rpartition(".")
            beside.setdefault(name, set()).add(layer)
    for key, tensor in list(fit.extra.items()):
        counts = tensor.numel() <= 1 and not tensor.is_floating_point() and not tensor.is_complex()
        is_measure = _MEASURES.search(key.partition(".")[0]) is not None
        if (
            counts
            or is_measure
            or key.rpartition(".")[2] in _PROFILED
            or beside.get(key.rpartition(".")[2], set()) >= layers
        ):
            del fit.extra[key]


def _leave_out_other_sets(fit: Fit, fits: Sequence[Fit]) -> None:
    """Leave out what a place has beside the network's names, where those are further sets of them.

    In `conv.weight` and `ema_model.conv.weight`, either is the network.
    """
    if fit.missing or fit.unlike:
        return
    others = {id(tensor) for other in fits if not other.missing for tensor in other.found.values()}
    if all(id(tensor) in others for tensor in fit.extra.values()):
        fit.extra.clear()


def _is_number(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.numel() <= 1


def _named(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Name the tensors of a place from where a fit begins."""
    return {f"{name}.{key}".strip("."): tensor for key, tensor in tensors.items()}


def _said(chosen: Fit, why: str, alike: list[Fit], fits: list[Fit], keyed: bool) -> list[str]:
    """Say which of several sets was chosen, which names were passed over, and what was left out."""
    said = []
    if len(alike) > 1:
        others = [fit.place.path for fit in alike if fit is not chosen]
        named = ", ".join(map(_shown, others))
        choice = f" (`key={'...' if all(others) else TOP}` chooses)" if keyed else ""
        said.append(f"took {_shown(chosen.place.path)} {why}, not {named}, which fit too{choice}")
    around = chosen.place
    while not (around.is_whole or around.is_named) and around.above is not None:
        around = around.above
    prefix = chosen.place.path.removeprefix(around.path).strip(".")
    passed = [name for name in dict.fromkeys([*prefix.split("."), *chosen.wrappers]) if name]
    if set(passed) - _USUAL:
        said.append(f"passed over {', '.join(map(shown, passed))} in the names of its weights")
    taken = {id(tensor) for fit in [*alike, *fits] for tensor in fit.found.values() if not fit.missing}
    counters = re.compile(rf"(^|\.){COUNTER}$")
    left = [key for key, value in around.own_tensors().items() if id(value) not in taken and not counters.search(key)]
    if left:
        more = f" and {len(left) - _FEW} more" if len(left) > _FEW else ""
        said.append(f"left out {', '.join(map(shown, left[:_FEW]))}{more}, which the network does not have")
    return said


def _shown(path: str) -> str:
    return shown(path) or "the top"
