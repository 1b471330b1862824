"""Read checkpoints of any common kind without running code, and write safetensors with a card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from depfuse.errors import CheckpointError
from depfuse.io.atomic_files import replacing
from depfuse.io.cards import CARD_KEY, Card
from depfuse.io.contents import read_contents
from depfuse.io.fitting import fit_weights, preferred
from depfuse.io.inert import Record
from depfuse.io.layouts import without_wrappers
from depfuse.io.paddle_and_jittor import Layout
from depfuse.io.sizes import check_size
from depfuse.io.versions import library_versions
from depfuse.io.weights import Place, UnknownKeyError, choose_place, find_weights, holds
from depfuse.models.origin import shown

# Of a Trainer's checkpoint: its version, the arguments of its module, and the name of the one that takes all.
LIGHTNING, SETTINGS, SETTINGS_NAME = "pytorch-lightning_version", "hyper_parameters", "hparams_name"


@dataclass(frozen=True)
class Checkpoint:
    """A state dict as it was read, with its card if it has one and its digest (see `state_digest`).

    Attributes
    ----------
    path
        The file, or folder.
    state
        Tensors by name: what a network without any other word would take, until `fitted_to` one.
    card
        Metadata of the network, if depfuse wrote the file.
    digest
        Of the state.
    layout
        Whether the weights of linear layers are (outputs, inputs) as in torch; see `read_pickle`.
    weights
        All tensors that the file holds, or those under the key that the user named; None once it is fitted.
    holds
        The keys under which the file has tensors, in words.
    settings
        What the file says its network was built with: Lightning's `hyper_parameters`.
    described
        Entries of the file, of words and numbers, without which Lightning builds no network from it.
    """

    path: Path
    state: dict[str, Tensor]
    card: Card | None
    digest: str
    layout: Layout = "torch"
    weights: Place | None = field(default=None, repr=False)
    holds: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    described: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def fitted_to(self, own: Mapping[str, Tensor], written: Mapping[str, str] | None = None) -> Checkpoint:
        """Find the tensors for a network's state dict among all that the file holds, by the network's own names.

        What was chosen of several, passed over in names, or left out is said in one warning. Where nothing has all of
        the network's names, the state is what comes nearest.

        Parameters
        ----------
        own
            The network's state dict.
        written
            The names of its tensors in files by its own names, where they are others (`names_in_files`).

        Raises
        ------
        CheckpointError
            A tensor of it has no values of its own.
        """
        if self.weights is None:
            return self
        # What is in memory already, such as what a client sent, has no file: none to choose from by a key, and none to
        # be out of proportion to.
        in_file = self.path.exists()
        state = fit_weights(self.path, self.weights, own, written, keyed=in_file)
        if state is None:
            return replace(self, weights=None)
        if state.keys() == self.state.keys() and all(state[key] is self.state[key] for key in state):
            return replace(self, weights=None)
        held = None if in_file else sum(tensor.nbytes for tensor in state.values())
        _check_tensors(self.path, state, held)
        return replace(self, state=state, digest=state_digest(state), weights=None)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of a state dict: keys, types, shapes and bytes, in the order of the keys."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_checkpoint(path: str | Path, key: str | None = None) -> Checkpoint:
    """Read the weights in a file or folder, whichever common program wrote it, without running code.

    Takes safetensors, what `torch.save` writes (.pt, .pth, .th, .dat, .ckpt, ...) whatever it holds beside tensors, a
    whole pickled module and TorchScript included, pickles of arrays (PaddlePaddle, Jittor), .npz, and folders or
    indices of parts as `save_pretrained` writes them. Classes that a file names become inert records. Weights may be
    nested to any depth and have any prefix; `load_into` finds those of the network by its own names, and turns linear
    weights as the network needs them.

    Parameters
    ----------
    path
        The file or folder.
    key
        Where the weights are in it, with dots for depth, such as ``"state_dict_ema"``; ``"."`` is the top. Without it,
        and until a network is known, they are taken to be the largest set of tensors; of several alike, an average of
        steps (EMA).

    Raises
    ------
    CheckpointError
        The file does not exist, is cut off, is no checkpoint, has nothing under the key, or has a card that contradicts
        its tensors.
    """
    path = Path(path)
    contents = read_contents(path)
    if not isinstance(contents.loaded, (Mapping, Record, list, tuple)):
        raise CheckpointError(f"{path} holds a {type(contents.loaded).__name__}, not the weights of a network by name")
    is_state = contents.kind == "safetensors" and key is None
    if contents.card is not None and is_state and isinstance(contents.loaded, dict):
        return _with_card(path, contents.loaded, contents.card)
    top = find_weights(path, contents.loaded, contents.layout)
    place = choose_place(path, top, key)
    if not place.parts:
        kind = "a list" if isinstance(contents.loaded, (list, tuple)) else "no tensors"
        raise CheckpointError(f"{path} holds {kind}: give a file with the weights of a network, by name")
    state = without_wrappers(_usual_set(place))
    _check_tensors(path, state, contents.size)
    settings = _settings(contents.loaded)
    described = _described(contents.loaded, settings)
    digest = state_digest(state)
    return Checkpoint(path, state, contents.card, digest, contents.layout, place, _nested(top), settings, described)


def read_checkpoints(paths: Sequence[Path], keys: Sequence[str] | None = None) -> list[Checkpoint]:
    """Read several files by `read_checkpoint`, with one key for all or one for each.

    Raises
    ------
    CheckpointError
        See `read_checkpoint`. One key for all need not be in a file that has one set of weights, but in one of them.
    """
    given = list(keys or ())
    if not given:
        return [read_checkpoint(path) for path in paths]
    if len(given) == len(paths):
        return [read_checkpoint(path, key) for path, key in zip(paths, given, strict=True)]
    (key,) = given
    read, unknown = [], []
    for path in paths:
        try:
            read.append(read_checkpoint(path, key))
        except UnknownKeyError as error:
            unknown.append(error)
            if not error.alone or len(unknown) == len(paths):
                raise
            read.append(read_checkpoint(path))
    return read


def _with_card(path: Path, state: dict[str, Tensor], card: Card) -> Checkpoint:
    """Check a state that depfuse wrote; its names are the network's."""
    if not state:
        raise CheckpointError(f"{path} holds no tensors: give a file with the weights of a network")
    _check_tensors(path, state)
    digest = state_digest(state)
    if card.tensors not in (None, digest):
        raise CheckpointError(
            f"{path}: the card belongs to other weights than these: the file was changed after it was written"
        )
    return Checkpoint(path, state, card, digest, weights=find_weights(path, state))


def _settings(loaded: Any) -> dict[str, Any]:
    """Find the settings by which a LightningModule was built."""
    found = loaded.get(SETTINGS) if isinstance(loaded, Mapping) else None
    if isinstance(found, Record):
        found = {**found.attributes, **{key: value for key, value in found.entries if key is not None}}
    return {key: value for key, value in found.items() if isinstance(key, str)} if isinstance(found, Mapping) else {}


def _described(loaded: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Select Lightning's version and settings, as far as they are words and numbers; nothing of other files."""
    if not isinstance(loaded, Mapping) or LIGHTNING not in loaded:
        return {}
    found = {name: loaded[name] for name in (LIGHTNING, SETTINGS_NAME) if name in loaded and _is_plain(loaded[name])}
    plain = {name: value for name, value in settings.items() if _is_plain(value)}
    return {**found, **({SETTINGS: plain} if plain else {})}


def _is_plain(value: Any) -> bool:
    """Tell whether a value is of words and numbers alone."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, (*value, *value.values())))
    return type(value) in (str, int, float, bool, type(None))


def _nested(top: Place) -> str:
    """Say what a file holds, where not all of it is at the top."""
    return holds(top) if any(place.path for place in top.sets()) else ""


def _usual_set(top: Place) -> dict[str, Tensor]:
    """Take the largest set of tensors; of several that have the same names, the preferred one."""
    sets = [(place, place.own_tensors()) for place in top.sets()] or [(top, top.tensors())]
    names = max((state.keys() for _, state in sets), key=len)
    alike = [(place, state) for place, state in sets if state.keys() == names]
    return alike[preferred([(place.path, state) for place, state in alike])[0]][1]


def write_checkpoint(path: str | Path, state: Mapping[str, Tensor], card: Card) -> str:
    """Write a state dict and its card as safetensors, all or nothing, and return the tensors' digest.

    Raises
    ------
    CheckpointError
        The file cannot be written; the one that was there is unchanged.
    """
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    digest = state_digest(tensors)
    described = {**card.model_dump(mode="json"), "versions": card.versions or library_versions(), "tensors": digest}
    metadata = {CARD_KEY: json.dumps(described, sort_keys=True)}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))
    return digest


def _check_tensors(path: Path, state: Mapping[str, Tensor], size: int | None = None) -> None:
    """Refuse tensors without values of their own, and views that repeat a small storage very often."""
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
            raise CheckpointError(
                f"{path}: {shown(key)} is no plain tensor (sparse, quantised or without numbers): save dense floats"
            )
        if tensor.is_floating_point() and tensor.element_size() < 2:
            raise CheckpointError(
                f"{path}: {shown(key)} has 8 bits per number ({tensor.dtype}), which mean nothing without their scale: "
                "save the weights as float32, float16 or bfloat16"
            )
    check_size(path, sum(tensor.numel() * tensor.element_size() for tensor in state.values()), size)
