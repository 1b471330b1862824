"""What networks of transformers and timm call their outputs: two with other names know other classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from depfuse.errors import RecipeError
from depfuse.io.into_network import loaded_card
from depfuse.networks.copying import unwrap
from depfuse.text import few

if TYPE_CHECKING:
    from depfuse.fusion.result import FusionResult

_FEW = 4


def labels_of(network: nn.Module) -> Mapping[int, str] | None:
    """Read what the outputs of a network of transformers or timm are called; None where that is not known."""
    found = getattr(getattr(network, "config", None), "id2label", None)
    listed = getattr(network, "pretrained_cfg", None)
    if isinstance(listed, dict) and isinstance(listed.get("label_names"), list):
        found = dict(enumerate(listed["label_names"]))
    return found if isinstance(found, Mapping) else None


def name_outputs(network: nn.Module, names: Sequence[str]) -> None:
    """Call the outputs of a network of transformers or timm by other names, where it has as many."""
    config: Any = getattr(network, "config", None)
    if hasattr(config, "id2label") and len(names) == len(config.id2label):
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
    listed = getattr(network, "pretrained_cfg", None)
    if isinstance(listed, dict) and len(names) == len(listed.get("label_names") or ()):
        network.pretrained_cfg = {**listed, "label_names": list(names)}  # type: ignore[assignment]


def class_names(result: FusionResult) -> tuple[str, ...] | None:
    """Name the child's classes by its parents' configurations; None where these do not name all."""
    sets = result.parent_labels
    known: dict[int, str] = {}
    for number, parent in enumerate(result.parents):
        labels = labels_of(unwrap(parent))
        if labels is None:
            return None
        places = range(len(labels)) if sets is None else sets.sets[number]
        for place, label in enumerate(places):
            known.setdefault(label, str(labels.get(place)))
    names = tuple(known[label] for label in (sorted(known) if sets is None else sets.joint))
    return names if len(set(names)) == len(names) else None


def check_class_names(models: Sequence[nn.Module]) -> None:
    """Raise `RecipeError` where parents of which no labels are said call their outputs by different names or numbers.

    They would be averaged output by output, a cat of one with an ox of another. Numbers are those on the cards of their
    files, and compared where not all of these parents have names.
    """
    by_name = {number: names for number, model in enumerate(models, start=1) if (names := _own_names(model))}
    by_number = {number: labels for number, model in enumerate(models, start=1) if (labels := _own_numbers(model))}
    _check_equal(by_name)
    if not by_number.keys() <= by_name.keys():
        _check_equal(by_number)


def _check_equal(known: Mapping[int, Sequence[int] | Sequence[str]]) -> None:
    for number, own in known.items():
        first, expected = next(iter(known.items()))
        if own == expected:
            continue
        called = f"parent {first} calls its outputs {few(expected, _FEW)}, and parent {number} {few(own, _FEW)}"
        everything = list(dict.fromkeys(label for labels in known.values() for label in labels))
        sets = ", ".join(
            str([label if isinstance(label, int) else everything.index(label) for label in labels])
            for labels in (expected, own)
        )
        raise RecipeError(f"{called}: say so by `labels`, such as {sets}, or give equal ones if they mean the same")


def _own_names(model: nn.Module) -> Sequence[str] | None:
    """List the names of outputs in order; None where there are none but the library's own."""
    labels = labels_of(unwrap(model))
    if labels is None and (card := loaded_card(model)) is not None and card.names:
        return card.names
    if not labels or sorted(labels) != list(range(len(labels))):
        return None
    names = tuple(str(labels[place]) for place in range(len(labels)))
    return None if names == tuple(f"LABEL_{place}" for place in range(len(labels))) else names


def _own_numbers(model: nn.Module) -> Sequence[int] | None:
    """List the labels of outputs in order, by the card of the network's file."""
    card = loaded_card(model)
    return None if card is None else card.classes
