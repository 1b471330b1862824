"""Read checkpoints of any common kind without running code, and write safetensors with a card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from depfuse.errors import CheckpointError
from depfuse.io.atomic_files import replacing
from depfuse.io.cards import CARD_KEY, Card, card_of
from depfuse.io.foreign_pickles import Layout, read_pickle, torch_names
from depfuse.io.headers import kind_of, metadata_of
from depfuse.io.layouts import plain_state, without_wrappers
from depfuse.io.sizes import check_size
from depfuse.io.torch_files import load_torch
from depfuse.io.versions import library_versions
from depfuse.models.origin import shown
from depfuse.text import first_line, storable


@dataclass(frozen=True)
class Checkpoint:
    """A state dict as it was read, with its card if it has one and its digest (see `state_digest`).

    `layout` says whether the weights of linear layers are (outputs, inputs) as in torch; see `read_pickle`.
    """

    path: Path
    state: dict[str, Tensor]
    card: Card | None
    digest: str
    layout: Layout = "torch"


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of a state dict: keys, types, shapes and bytes, in the order of the keys."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights in a file, whichever common program wrote it, without running code.

    Takes safetensors, and what `torch.save` writes (.pt, .pth, .th, .dat, .ckpt, ...) as long as it holds
    only tensors and plain values. The state dict may be nested under ``state_dict``,
    ``model_state_dict``, ``model`` or ``net``, its keys may begin with ``module.`` or ``_orig_mod.``,
    and it may have been saved on CUDA: tensors come to the CPU. Pickles of arrays, as PaddlePaddle and Jittor write
    them, are read without either; `load_into` turns linear weights as the network needs them.

    Raises
    ------
    CheckpointError
        The file does not exist, is cut off, is no checkpoint, needs code to be run, or has a card that contradicts its
        tensors.
    """
    path = Path(path)
    kind = kind_of(path)
    card: Card | None = None
    layout: Layout = "torch"
    if kind == "safetensors":
        state, card = _load_safetensors(path)
    elif kind == "pickle of arrays":
        loaded, layout = read_pickle(path)
        state = torch_names(plain_state(path, loaded), layout)
    else:
        state = plain_state(path, load_torch(path))
    if not state:
        raise CheckpointError(f"{path} holds no tensors: give a file with the weights of a network")
    _check_tensors(path, state)
    digest = state_digest(state)
    if card is not None and card.tensors not in (None, digest):
        raise CheckpointError(
            f"{path}: the card belongs to other weights than these: the file was changed after it was written"
        )
    return Checkpoint(path, state, card, digest, layout)


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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if storable(str(path)) == str(path):
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    content = path.read_bytes()  # the library cannot open a file whose name is not Unicode
    return safetensors.torch.load(content), metadata_of(content)


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], Card | None]:
    try:
        state, metadata = _read_safetensors(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or cut off: {first_line(error)}") from None
    card = card_of(path, metadata)
    return (without_wrappers(state) if card is None else state), card


def _check_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
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
    check_size(path, sum(tensor.numel() * tensor.element_size() for tensor in state.values()))
