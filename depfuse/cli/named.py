"""Networks and data as arguments and the headers of files name them: checked before anything waits for torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depfuse.cli.options import DataOptions
from depfuse.data.label_shares import read_classes
from depfuse.data.names import DATA_SETS, check_data_name
from depfuse.errors import ArchitectureError, CheckpointError, DataError, RecipeError
from depfuse.io.cards import Card
from depfuse.io.headers import read_card
from depfuse.io.hub_folders import hub_card
from depfuse.models.architecture import check_built_in, family, needs_trust, parse_architecture, with_arguments
from depfuse.models.origin import REGISTRIES, shown
from depfuse.models.upscalers import EXTRA, has_spandrel
from depfuse.text import counted


@dataclass(frozen=True)
class Named:
    """What is named: per network its architecture, in the user's words or a card's, and one data set."""

    architectures: tuple[str, ...]
    data: str


def read_named(
    paths: Sequence[Path],
    arch: str | Sequence[str] | None,
    options: DataOptions,
    classes: Sequence[str] | None = None,
    trust: Sequence[Path] | None = None,
    key: Sequence[str] | None = None,
) -> Named:
    """Read the headers of checkpoints, and settle what the networks and the data are.

    What the user leaves out is taken from the cards. Code and data that a card names are taken only where its file is
    one of those that the user trusts. Where nothing says what a network is, its tensors are read for it (`key` says
    where in the file they are).

    Raises
    ------
    DepfuseError
        A file is not there or no checkpoint, a name is none, or the cards leave something open or disagree.
    """
    words = [arch] if arch is None or isinstance(arch, str) else list(arch)
    if len(words) not in (1, len(paths)):
        raise ArchitectureError(
            f"{len(words)} architectures for {len(paths)} networks: give --arch once, or once per network"
        )
    words *= len(paths) // len(words)
    trusted = _trusted(paths, trust or ())
    cards = [read_card(path) for path in paths]
    for path, card, text in zip(paths, cards, words, strict=True):
        if path in trusted:
            _check_trust(path, card, text, options.data)
    _check_keys(paths, key)
    keys = list(key or (None,)) * (len(paths) if len(key or (None,)) == 1 else 1)
    architectures = tuple(
        _by_tensors(path, own) if card is None and text is None else _architecture(path, card, text, path in trusted)
        for path, card, text, own in zip(paths, cards, words, keys, strict=True)
    )
    if classes and len(classes) != len(paths):
        raise RecipeError(
            f"--classes is given {counted(len(classes), 'time')} for {len(paths)} parents: once per parent"
        )
    for text in classes or ():
        read_classes(text)
    data = options.data or _named_data(paths, cards, trusted)
    check_data_name(data)
    options.means(), options.stds(), options.sizes(), options.crops()
    return Named(architectures, data)


def architecture_of(text: str) -> str:
    """Return an architecture as it is named, or as a file or folder of weights says its own.

    Raises
    ------
    ArchitectureError, CheckpointError
        It is neither, or the file does not say it in a way that can be followed without trust.
    """
    path = Path(text)
    try:
        check_built_in(parse_architecture(text))
    except ArchitectureError:
        if not path.exists() or path.suffix == ".py":
            raise
    else:
        return text
    card = read_card(path)
    try:
        return _by_tensors(path, None) if card is None else _architecture(path, card, None, trusted=False)
    except ArchitectureError:
        raise ArchitectureError(
            f"{path} does not say what network it is, or names code of its own: give the architecture in its place"
        ) from None


def _check_keys(paths: Sequence[Path], keys: Sequence[str] | None) -> None:
    """Raise `RecipeError` where keys are given neither once nor once per file."""
    if keys and len(keys) not in (1, len(paths)):
        raise RecipeError(f"{len(keys)} keys for {len(paths)} files: give --key once, or once per file")


def check_family(paths: Sequence[Path], architectures: Sequence[str]) -> None:
    """Raise `CheckpointError` where two networks are not of one architecture; their widths may differ."""
    for path, architecture in zip(paths, architectures, strict=True):
        if family(architecture) != family(architectures[0]):
            raise CheckpointError(
                f"{paths[0]} is a {architectures[0]}, but {path} is a {architecture}:"
                " only networks of one architecture can be fused"
            )


def same_architecture(paths: Sequence[Path], architectures: Sequence[str]) -> str:
    """Return the architecture that all networks share, widths included; a `CheckpointError` names two that differ."""
    check_family(paths, architectures)
    for path, architecture in zip(paths, architectures, strict=True):
        if architecture != architectures[0]:
            raise CheckpointError(
                f"{paths[0]} is a {architectures[0]}, but {path} is a {architecture}: their channels are not equally"
                " many, so that no permutation matches them"
            )
    return architectures[0]


def _trusted(paths: Sequence[Path], trust: Sequence[Path]) -> set[Path]:
    """Find the files that the user trusts among those that are read, however they are written."""
    for path in trust:
        if not any(path.resolve() == own.resolve() for own in paths):
            raise CheckpointError(f"--trust {path} is none of the files that are read: give the name of one of them")
    return {own for own in paths if any(path.resolve() == own.resolve() for path in trust)}


def _check_trust(path: Path, card: Card | None, arch: str | None, data: str | None) -> None:
    """Raise `CheckpointError` where nothing is taken from the card of a trusted file."""
    if card is None:
        raise CheckpointError(
            f"--trust {path} has nothing to trust, as the file names no network and no data: leave it out"
        )
    of_data = data is None and card.data is not None and card.data not in DATA_SETS
    if arch is not None and not of_data:
        instead = "--arch" if data is None else "--arch and --data"
        raise CheckpointError(
            f"--trust {path} does nothing beside {instead}, which stand for what the file says: leave out one of them"
        )


def _by_tensors(path: Path, key: str | None) -> str:
    """Recognise a network whose file does not say what it is."""
    advice = "give --arch"
    if not has_spandrel():
        advice += f", or `{EXTRA}`, by which upscalers are recognised"
    else:
        from depfuse.io.recognising import recognised_architecture  # here, as it needs torch

        found = recognised_architecture(path, key)
        if found is not None:
            return found
    raise ArchitectureError(f"{path} does not say what network it is: {advice}")


def _architecture(path: Path, card: Card | None, arch: str | None, trusted: bool) -> str:
    """Take the architecture in the user's words, else in the file's, which are the user's where the file is trusted."""
    if arch is not None:
        check_built_in(parse_architecture(arch))
        configured = hub_card(path)
        return arch if configured is None else _agreeing(path, configured.architecture, arch)
    assert card is not None
    named = card.architecture
    if trusted:
        return str(named)
    try:
        reason = needs_trust(named)
    except ArchitectureError as error:
        raise ArchitectureError(f"{path}: {error}") from None
    if reason is not None:
        raise ArchitectureError(
            f"{path} says that its network is {shown(named)}, which {reason}: say what it is with"
            f" --arch, such as --arch FILE.py:FACTORY, or give --trust {path} if that file is your own"
        )
    return named


def _agreeing(path: Path, configured: str, arch: str) -> str:
    """Settle what a folder's configuration and the user say: code of the user's own, or else the configuration."""
    own, named = parse_architecture(arch), parse_architecture(configured)
    if own.source not in REGISTRIES:
        return arch
    other = [key for key, value in own.arguments.items() if named.arguments.get(key, value) != value]
    if family(arch) != family(configured) or other:
        said = f"a {named.source}:{named.name}" if not other else f"{other[0]}={named.arguments[other[0]]!r}"
        raise ArchitectureError(
            f"{path}/config.json says {said}, and --arch {shown(arch)} something else: leave out --arch"
        )
    return with_arguments(configured, **own.arguments)


def _named_data(paths: Sequence[Path], cards: Sequence[Card | None], trusted: Collection[Path]) -> str:
    """Take the data set from the cards: one that is built in, or what a trusted file names."""
    name = agreed(cards, "data")
    if name is None:
        raise DataError("no data are named, by you or by the files: give --data")
    naming = [path for path, card in zip(paths, cards, strict=True) if card and card.data is not None]
    if name not in DATA_SETS and not set(naming) <= set(trusted):
        raise DataError(
            f"{naming[0]} says that its data are {shown(name)}, which is not opened because a file names it:"
            " give --data"
        )
    return str(name)


def agreed(cards: Sequence[Card | None], field: str) -> Any:
    """Return the value of a field in the cards, None where none has it; they must not contradict."""
    said = [value for card in cards if card is not None and (value := getattr(card, field)) is not None]
    if any(value != said[0] for value in said):
        option = {"data": "--data", "preprocessing": "--mean and --std"}[field]
        raise DataError(f"the networks' cards disagree about their {field}: say it with {option}")
    return said[0] if said else None
