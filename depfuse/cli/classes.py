"""What the outputs of networks stand for: the classes of the data, by name or by number."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from depfuse.data import DataSet, Split
from depfuse.data.label_shares import read_classes
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import DataError, DepfuseWarning
from depfuse.io.cards import Card
from depfuse.models.origin import shown
from depfuse.text import counted, few


def label_sets(
    cards: Sequence[Card | None], classes: Sequence[str] | None, data: DataSet, paths: Sequence[Path]
) -> tuple[LabelSets | None, tuple[str, ...] | None, DataSet]:
    """Collect the labels that each parent knows, from the user or else the cards, and number the data's accordingly.

    None where all know the same. The data's classes are then those of the child's outputs, whose names come as well,
    where they are known.

    Raises
    ------
    DataError
        A class of the data is known to no parent, a number is none of the data's, or parents know different classes by
        numbers of other data.
    """
    labels_of_parents: Sequence[Sequence[int] | Sequence[str] | None]
    if classes:
        labels_of_parents = [read_classes(text) for text in classes]
    else:
        if not data.classes and all(card and card.names for card in cards):
            labels_of_parents = [card.names for card in cards if card is not None]
        else:
            labels_of_parents = [of_card(card, data) for card in cards]
            _check_numbers(cards, labels_of_parents, data, paths)
        if all(parent_labels == labels_of_parents[0] for parent_labels in labels_of_parents):
            return None, None, data
        if not data.classes and None in labels_of_parents:  # nothing says what a parent without a card knows
            if len({parent_labels for parent_labels in labels_of_parents if parent_labels is not None}) > 1:
                raise DataError("the parents know different labels: say which with --classes, once per parent")
            return None, None, data
    names = list(data.classes)
    for parent_labels in labels_of_parents:
        names += [name for name in parent_labels or () if isinstance(name, str) and name not in names]
    numbers = {name: number for number, name in enumerate(names)}
    everything = tuple(range(len(data.classes)))
    sets = LabelSets.create(
        [
            everything
            if parent_labels is None
            else tuple(
                numbers[label_or_name] if isinstance(label_or_name, str) else label_or_name
                for label_or_name in parent_labels
            )
            for parent_labels in labels_of_parents
        ]
    )
    unknown = sorted(label for label in sets.joint if label >= len(names))
    if unknown and data.classes and data.by_name:
        raise DataError(f"the data have labels 0 to {len(names) - 1}, but a parent is said to know {unknown[0]}")
    names += [str(number) for number in range(len(names), max(sets.joint) + 1)]
    # Parents that know the same have a child with their outputs in their order, whatever it is.
    alike = len(set(sets.sets)) == 1
    order = sets.sets[0] if alike else sets.joint
    places = {label: place for place, label in enumerate(order)}
    missing = [label for label in everything if label not in places]
    if missing:
        called = "" if names[missing[0]] == str(missing[0]) else f" ({names[missing[0]]})"
        raise DataError(
            f"no parent knows label {missing[0]}{called} of the data: give data of the labels that they know"
        )
    joint = tuple(names[label] for label in order)
    if data.classes:
        data = renumbered(data, [places[label] for label in everything], joint)
    named = None if joint == tuple(map(str, order)) else joint
    return (None if alike else sets), named, data


def of_card(card: Card | None, data: DataSet) -> tuple[int, ...] | tuple[str, ...] | None:
    """Read from a card which classes of the data its network knows, by name or number; None where it does not say.

    Names count for data whose classes have names. Numbers are those of the data that the card is of: they count there,
    for data whose classes are numbers, and for data without classes; of classes called 3 and 7 they are the names.
    """
    if card is None:
        return None
    if data.classes and of_network(card, data, None) is not None:
        return card.names
    named = class_names(data)
    if card.classes is None or not named or card.data == data.name:
        return card.classes
    if not _decimal(named):
        return None
    by_number = {int(name): name for name in named}
    return tuple(by_number.get(number, str(number)) for number in card.classes)


def _check_numbers(
    cards: Sequence[Card | None],
    known: Sequence[Sequence[int] | Sequence[str] | None],
    data: DataSet,
    paths: Sequence[Path],
) -> None:
    """Raise `DataError` where cards say by numbers of other data that parents know different classes."""
    others = {
        number: card.classes
        for number, (card, own) in enumerate(zip(cards, known, strict=True))
        if card and card.classes and own is None
    }
    if others and (len(set(others.values())) > 1 or any(own is not None for own in known)):
        first = next(iter(others))
        card = cards[first]
        assert card is not None
        assert card.classes is not None
        whose = f"of {shown(card.data)}" if card.data else "of other data"
        raise DataError(
            f"{paths[first]} knows classes {few(card.classes)} {whose}, and nothing says which classes of {data.name}"
            " these are: name them with --classes, once per parent, like --classes cat,dog"
        )


def label_of(text: str, labels: LabelSets | None, names: tuple[str, ...] | None) -> int:
    """Find the label that a number or a name stands for; names are those of the child's outputs, where known.

    Raises
    ------
    DataError
        It is no number, and no output has that name.
    """
    if names and text in names:
        place = names.index(text)
        return place if labels is None else labels.joint[place]
    if text.isdecimal() and text.isascii():
        return int(text)
    known = "they have no names" if not names else f"they are called {', '.join(names)}"
    raise DataError(f"--background {text} is no number, and none of the outputs is called that: {known}")


def of_known_classes(
    data: DataSet, paths: Sequence[Path], known: Sequence[Sequence[int] | Sequence[str] | None]
) -> tuple[DataSet, Sequence[str] | None]:
    """Keep the test images of the classes that networks know, where all know the same and not all that the data have.

    Parameters
    ----------
    data
        With test images.
    paths
        The networks' files.
    known
        For each network the classes that its outputs stand for, by number or name, where that is known.

    Returns
    -------
    DataSet, names or None
        The data, and what the networks' outputs stand for now; None where nothing was left out.

    Raises
    ------
    DataError
        Networks know different classes.
    """
    first, test = known[0], data.required_test
    if first is None or None in known or test.labels is None:
        return data, None
    for path, one in zip(paths, known, strict=True):
        if one != first and min(len(one or ()), len(first)) < len(data.classes):
            raise DataError(f"{paths[0]} and {path} know different classes of {data.name}: run them apart")
    places = {one: place for place, name in enumerate(data.classes) for one in (place, name)}
    if any(one not in places for one in first) or len(first) == len(data.classes):
        return data, None
    _check_first(data, len(first), paths[0])
    numbers = [places[one] for one in first]
    ordered = sorted(numbers)
    kept = torch.nonzero(torch.isin(test.labels, torch.tensor(ordered)))[:, 0]
    own = test.take(kept)
    own = dataclasses.replace(own, labels=torch.searchsorted(torch.tensor(ordered), own.required_labels))
    warnings.warn(
        f"{' and '.join(map(str, paths))} {'know' if len(paths) > 1 else 'knows'} {len(ordered)} of the"
        f" {len(data.classes)} classes of {data.name}: {counted(len(kept), 'test image')} of {len(test)} are of these,"
        " and the others are left out",
        DepfuseWarning,
        stacklevel=3,
    )
    train = dataclasses.replace(data.train, labels=None)
    classes = tuple(data.classes[one] for one in ordered)
    return dataclasses.replace(data, classes=classes, train=train, test=own), [data.classes[one] for one in numbers]


def in_outputs(
    data: DataSet,
    outputs: Sequence[int],
    paths: Sequence[Path],
    labels_of_outputs: Sequence[Sequence[int] | Sequence[str] | None],
) -> DataSet:
    """Give the data's classes the numbers of networks' outputs; a network of more outputs keeps them all.

    Classes are found by name where it is known what the outputs are called, else by number.

    Parameters
    ----------
    data
        The data.
    outputs
        How many outputs each network has.
    paths
        The networks' files.
    labels_of_outputs
        For each network what its outputs stand for, where that is known.

    Raises
    ------
    DataError
        A class is none of a network's, its output is not known, or networks have them in different orders.
    """
    if not data.classes:
        return data
    places_by_network = [_places(data, *own) for own in zip(outputs, paths, labels_of_outputs, strict=True)]
    if data.by_name and any(
        own is None and count == len(data.classes) for own, count in zip(labels_of_outputs, outputs, strict=True)
    ):
        _say_the_order(data, paths[[own is None for own in labels_of_outputs].index(True)])
    for path, places in zip(paths, places_by_network, strict=True):
        if places != places_by_network[0]:
            raise DataError(f"{paths[0]} and {path} have the classes of the data at different outputs: run them apart")
    most = max(outputs)
    if places_by_network[0] == list(range(len(data.classes))) and most <= len(data.classes):
        return data
    names = [str(number) for number in range(most)]
    for name, place in zip(data.classes, places_by_network[0], strict=True):
        names[place] = name
    return renumbered(data, places_by_network[0], tuple(names))


def _places(
    data: DataSet, outputs: int, path: Path, labels_of_outputs: Sequence[int] | Sequence[str] | None
) -> list[int]:
    """Find the output of each class of the data."""
    count = len(data.classes)
    if outputs < count:
        _check_first(data, outputs, path)
        raise DataError(
            f"{path} has {outputs} outputs, but the labels name {count} classes, so that labels from {outputs} on are"
            " out of range: say which labels each parent knows with --classes, once per parent"
        )
    if labels_of_outputs is not None:
        wanted: Sequence[int] | Sequence[str] = data.classes if isinstance(labels_of_outputs[0], str) else range(count)
        for one in wanted:
            if one not in labels_of_outputs:
                raise DataError(
                    f"class {one} of {data.name} is none of those that {path} knows: {few(labels_of_outputs)}"
                )
        return [list(labels_of_outputs).index(one) for one in wanted]
    if outputs == count or not data.by_name:
        return list(range(count))
    if _decimal(data.classes) and all(int(name) < outputs for name in data.classes):
        return [int(name) for name in data.classes]
    raise DataError(
        f"{path} has {outputs} outputs and {data.name} {count} classes, such as {data.classes[0]}, and nothing says"
        " which output is which: name all outputs in order with --classes, once per network, like --classes cat,dog"
    )


def _check_first(data: DataSet, outputs: int, path: Path) -> None:
    """Raise `DataError` where labels are numbers from 1 on, as many as there are outputs."""
    labels = [split.required_labels for split in (data.train, data.test) if split and split.of_classes]
    least = min((int(one.min()) for one in labels if len(one)), default=0)
    if not data.by_name and least == 1 and len(data.classes) == outputs + 1:
        raise DataError(
            f"the labels of {data.name} are 1 to {outputs}, and the outputs of {path} stand for 0 to {outputs - 1}:"
            " subtract 1 from each label"
        )


def _say_the_order(data: DataSet, path: Path) -> None:
    """Say that classes are taken in alphabetical order, unless that is the order of their numbers."""
    if _decimal(data.classes) and list(data.classes) == sorted(data.classes, key=int):
        return
    warnings.warn(
        f"nothing says what the outputs of {path} are called: the classes of {data.name},"
        f" {', '.join(data.classes[:3])}{', ...' if len(data.classes) > 3 else ''}, are taken in alphabetical order, as"
        " torchvision's ImageFolder numbers them; --classes names them otherwise",
        DepfuseWarning,
        stacklevel=3,
    )


def renumbered(data: DataSet, places: Sequence[int], classes: tuple[str, ...]) -> DataSet:
    """Give the classes of data other numbers: places[k] for label k."""
    if list(places) == list(range(len(places))) and classes == data.classes:
        return data
    table = torch.tensor(places)

    def changed(split: Split) -> Split:
        return split if split.labels is None else dataclasses.replace(split, labels=table[split.labels])

    test = None if data.test is None else changed(data.test)
    return dataclasses.replace(data, classes=classes, train=changed(data.train), test=test)


def agreed_names(cards: Sequence[Card | None]) -> tuple[str, ...] | None:
    """Return the names of classes that all cards have; None where one has none, or others."""
    named = {None if card is None else card.names for card in cards}
    return named.pop() if len(named) == 1 else None


def class_names(data: DataSet) -> tuple[str, ...] | None:
    """Return the names of the data's classes, None where these are their numbers."""
    return None if data.classes == tuple(map(str, range(len(data.classes)))) else data.classes


def of_network(card: Card | None, data: DataSet, given: str | None) -> Sequence[int] | Sequence[str] | None:
    """Return what a network's outputs stand for, in the user's words or by its card's names."""
    if given is not None:
        return read_classes(given)
    if card is None or not card.names:
        return None
    # Numbers as names are outputs in another order than that of these.
    return card.names if _decimal(card.names) or class_names(data) else None


def _decimal(names: Sequence[str]) -> bool:
    return all(name.isdecimal() and name.isascii() for name in names)
