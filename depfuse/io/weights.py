"""All tensors of a file, as a tree: by the keys of its dicts, the parts of their dotted names, and attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from depfuse.errors import CheckpointError
from depfuse.io.inert import Record
from depfuse.io.paddle_and_jittor import Layout, torch_name
from depfuse.models.origin import shown

# Bounds of what is looked for in a file.
DEEPEST, VALUES, ELEMENTS = 100, 500_000, 1_000
TOP = "."  # key of the top
_NAMED = 12  # sets that a message lists
_PARTS_OF_MODULES = {"_parameters", "_buffers", "_modules"}


class UnknownKeyError(CheckpointError):
    """A file has no weights under the key that the user named; `alone` says whether it has one set of them only."""

    def __init__(self, message: str, *, alone: bool) -> None:
        super().__init__(message)
        self.alone = alone


@dataclass
class Place:
    """A place in a file: a tensor, further places by name, or both.

    `is_whole` says whether it is a dict, list or object of its own and no part of a dotted name, `is_named` whether the
    user named it.
    """

    name: str = ""
    above: Place | None = field(default=None, repr=False)
    tensor: Tensor | None = field(default=None, repr=False)
    parts: dict[str, Place] = field(default_factory=dict, repr=False)
    is_whole: bool = False
    is_named: bool = False

    @property
    def path(self) -> str:
        """Names from the top of the file, with dots between them."""
        return "" if self.above is None else f"{self.above.path}.{self.name}" if self.above.path else self.name

    @property
    def own_set(self) -> Place:
        """The innermost dict or object that holds it: itself, where it is one."""
        return self if self.is_whole or self.above is None else self.above.own_set

    def places(self) -> Iterator[Place]:
        """Go through this and all further places, in the order of the file."""
        yield self
        for part in self.parts.values():
            yield from part.places()

    def tensors(self) -> dict[str, Tensor]:
        """Collect all tensors by their names from here."""
        tensors = {} if self.tensor is None else {"": self.tensor}
        for name, part in self.parts.items():
            tensors |= {f"{name}.{key}" if key else name: tensor for key, tensor in part.tensors().items()}
        return tensors

    def own_tensors(self) -> dict[str, Tensor]:
        """Collect the tensors by their names from here, without those of dicts and objects within it."""
        tensors = {} if self.tensor is None else {"": self.tensor}
        for name, part in self.parts.items():
            if not part.is_whole:
                tensors |= {f"{name}.{key}" if key else name: tensor for key, tensor in part.own_tensors().items()}
        return tensors

    def sets(self) -> list[Place]:
        """List the dicts and objects that hold tensors themselves; a module counts with all of its parts."""
        return [place for place in self.places() if place.is_whole and place.own_tensors()]

    def at(self, path: str) -> Place | None:
        """Find a place by its path from here."""
        place: Place | None = self
        for name in path.split("."):
            place = None if place is None else place.parts.get(name)
        return place

    def put(self, path: str) -> Place:
        """Return the place of that path from here, made if need be."""
        place = self
        for name in path.split("."):
            place = place.parts.setdefault(name, Place(name, place))
        return place

    def take(self, other: Place) -> None:
        """Take over the parts of another place."""
        self.is_whole |= other.is_whole
        for name, part in other.parts.items():
            if name in self.parts:
                self.parts[name].take(part)
                self.parts[name].tensor = part.tensor if part.tensor is not None else self.parts[name].tensor
            else:
                part.above = self
                self.parts[name] = part


def find_weights(path: Path, loaded: Any, layout: Layout = "torch") -> Place:
    """Collect all tensors in what a file holds, at most `DEEPEST` levels deep, with the names that torch gives them.

    Raises
    ------
    CheckpointError
        It is nested too deeply, or holds too many values.
    """
    return _Search(path, layout).whole(loaded, 0) or Place(is_whole=True)


def choose_place(path: Path, top: Place, key: str | None) -> Place:
    """Find what the user's key names, where a single dot is the top; all of the file where there is none.

    Raises
    ------
    UnknownKeyError
        There is nothing of that name.
    """
    if key is None:
        return top
    place = top if key == TOP else top.at(key)
    if place is None:
        message = f"{path} has no weights under the key {shown(key)}: {holds(top)}"
        raise UnknownKeyError(message, alone=len(top.sets()) < 2)
    place.is_named = True
    return place


def holds(top: Place) -> str:
    """Say in a few words under which keys a file has tensors."""
    names = [shown(place.path) for place in top.sets() if place.path]
    if not names:
        return "all its tensors are at the top, under no key"
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"it holds {', '.join(names[:_NAMED])}{more}"


class _Search:
    def __init__(self, path: Path, layout: Layout) -> None:
        self._path = path
        self._layout = layout
        self._left = VALUES
        self._open: set[int] = set()
        self._without: set[int] = set()  # tensors; a file may hold the same list in a list, many times over

    def whole(self, value: Any, depth: int, *, within_module: bool = False) -> Place | None:
        """Collect the tensors in a dict, list or object; None where there are none."""
        parts = _parts(value)
        if parts is None or id(value) in self._open or id(value) in self._without:
            return None
        self._open.add(id(value))
        is_module = isinstance(value, Record) and _is_module(value)
        place = Place(is_whole=not (within_module and is_module))
        for name, part in parts:
            self._left -= 1
            if self._left < 0:
                raise CheckpointError(f"{self._path} holds more than {VALUES:,} values: it is no checkpoint")
            if depth + name.count(".") > DEEPEST:
                raise CheckpointError(f"{self._path} is nested too deeply to be a checkpoint")
            if isinstance(part, Tensor):
                place.put(torch_name(name, self._layout)).tensor = part
            elif found := self.whole(part, depth + 1 + name.count("."), within_module=is_module):
                place.put(name).take(found)
        self._open.remove(id(value))
        if place.parts:
            return place
        self._without.add(id(value))
        return None


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """List what a value holds, by name; None where it is no dict, short list or object."""
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [(str(number), part) for number, part in enumerate(value)] if len(value) <= ELEMENTS else None
    if not isinstance(value, Record):
        return None
    state = value.attributes
    if state.keys() >= _PARTS_OF_MODULES:
        unsaved = state.get("_non_persistent_buffers_set")
        left_out = {name for name in unsaved if isinstance(name, str)} if isinstance(unsaved, list) else set()
        kinds = [state[name] for name in ("_parameters", "_buffers", "_modules") if isinstance(state[name], Mapping)]
        return [(str(name), part) for kind in kinds for name, part in kind.items() if name not in left_out]
    entries = [(str(key), part) for key, part in value.entries if key is not None]
    arguments = [(str(number), part) for number, part in enumerate(value.arguments[:ELEMENTS])]
    return [*state.items(), *entries, *arguments]


def _is_module(record: Record) -> bool:
    """Tell whether a record is a pickled `nn.Module`, or a part of a TorchScript program."""
    return record.kind.startswith("__torch__.") or record.attributes.keys() >= _PARTS_OF_MODULES
