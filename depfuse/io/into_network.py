"""Put the weights of checkpoints into networks."""

from __future__ import annotations

import re
from operator import sub
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from depfuse.errors import CheckpointError
from depfuse.io.cards import Card
from depfuse.io.checkpoint import Checkpoint, read_checkpoint
from depfuse.io.hub_folders import describe
from depfuse.io.layouts import in_layout_of
from depfuse.io.recognising import recognised
from depfuse.models.origin import shown
from depfuse.models.registry import build_network
from depfuse.models.transformers_networks import names_in_files
from depfuse.networks.copying import tied_names, unwrap
from depfuse.networks.real_state import as_real
from depfuse.networks.resizing import resize

# What the files say of networks that were loaded from them, as long as these exist.
_CARDS: WeakKeyDictionary[nn.Module, Card] = WeakKeyDictionary()

_ADAPTER = re.compile(r"(^|[._])(lora|loha|lokr|hada|ia3)_")  # in the names of adapters' weights


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put the weights of a checkpoint into a network; all of them must fit.

    ``num_batches_tracked`` of a BatchNorm may be missing, as in files of old versions of torch, and all names but one
    of a tensor that has several. A network from a folder of transformers or timm is told what that says. Values of
    another precision are converted to the network's own. Weights of `nn.Linear` are transposed where the file has
    PaddlePaddle's layout.

    Raises
    ------
    CheckpointError
        Keys are missing or left over, shapes differ, complex numbers would become real ones, or a value is not finite;
        the network is unchanged then.
    """
    if checkpoint.card is not None and checkpoint.card.widened:
        _widen(model, checkpoint)
    own = model.state_dict()
    checkpoint = checkpoint.fitted_to(own, names_in_files(model))
    state = in_layout_of(model, checkpoint.state, checkpoint.path, checkpoint.layout)
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    tied = {own[key].data_ptr() for key in state if key in own}
    missing = [key for key in own if key not in state and key not in counters and own[key].data_ptr() not in tied]
    extra = [key for key in state if key not in own]
    where = f"{checkpoint.path} does not fit {type(model).__name__}"
    if missing or extra:
        parts = [f"{_few(missing)} missing"] * bool(missing) + [f"{_few(extra)} left over"] * bool(extra)
        raise CheckpointError(f"{where}: {' and '.join(parts)}; {_reason(model, checkpoint, missing, extra)}")
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if wrong:
        key = wrong[0]
        others = f" and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        if state[key].numel() == 0:
            raise CheckpointError(
                f"{checkpoint.path} has no numbers for {key}{others.removesuffix(' differ')}: several processes have a"
                " part each (FSDP, DeepSpeed ZeRO): put the parts together, such as by zero_to_fp32.py"
            )
        raise CheckpointError(
            f"{where}: {key} has shape {tuple(state[key].shape)} there and {tuple(own[key].shape)} in the network"
            f"{others}; {_advice(checkpoint.card)}"
        )
    other = [key for key in state if state[key].is_complex() != own[key].is_complex()]
    if other:
        kinds = ("complex", "real") if state[other[0]].is_complex() else ("real", "complex")
        raise CheckpointError(f"{where}: {_few(other)} {kinds[0]} there and {kinds[1]} in the network")
    if any(tensor.is_meta for tensor in own.values()):
        raise CheckpointError(
            f"{type(model).__name__} has no room for weights (it is on the meta device): build it on the CPU"
        )
    for names in tied_names(own):
        there = [name for name in names if name in state]
        two = next((name for name in there if not torch.equal(state[name], state[there[0]])), None)
        if two is not None:
            raise CheckpointError(
                f"{where}: {there[0]} and {two} are two tensors there and one in the network;"
                f" {_advice(checkpoint.card)}"
            )
    floats = {key for key, tensor in model.named_parameters() if tensor.is_floating_point()}
    whole = [key for key in state if key in floats and not state[key].is_floating_point()]
    if whole:
        raise CheckpointError(
            f"{where}: {_few(whole)} whole numbers there ({state[whole[0]].dtype}), as quantised weights are, which"
            " mean nothing without their scale: save the weights as float32, float16 or bfloat16"
        )
    broken = [key for key in state if not as_real(state[key]).isfinite().all()]
    if broken:
        raise CheckpointError(f"{checkpoint.path}: {_few(broken)} not finite (NaN or infinity): no usable network")
    with torch.no_grad():  # not by load_state_dict, which some networks refuse without their metadata
        for key, tensor in state.items():
            own[key].copy_(tensor)
    if checkpoint.card is not None:
        _CARDS[model] = checkpoint.card
        if checkpoint.path.is_dir():
            describe(model, checkpoint.path, checkpoint.card)


def loaded_card(network: nn.Module) -> Card | None:
    """Return the card of the file that a network was loaded from; None of any other, and of copies."""
    return _CARDS.get(unwrap(network))


def load_network(path: str | Path, *, key: str | None = None, trust: bool = False, **defaults: Any) -> nn.Module:
    """Load the network in a file that depfuse wrote, in evaluation mode on the CPU.

    Its card has the architecture and the number of classes. Other programs' files have no card: an upscaler or restorer
    of spandrel is recognised; else name the architecture to `depfuse.load`, or build the network and use
    `read_checkpoint` and `load_into`.

    Parameters
    ----------
    path
        The file or folder; see `read_checkpoint`.
    key
        Where its weights are in the file, with dots for depth, where there are several, such as ``"state_dict_ema"``.
    trust
        Import and call the function of a file or module that the card names as the network; for files of your own.
    **defaults
        Settings that the card's architecture leaves open, such as ``in_channels``; see `build_network`.

    Raises
    ------
    CheckpointError
        The file has no card, and is not recognised; for what else, see `read_checkpoint` and `load_into`.
    ArchitectureError
        See `build_network`; the card names code of its own, and `trust` is not given.
    """
    checkpoint = recognised(read_checkpoint(path, key))
    if checkpoint.card is None:
        raise CheckpointError(
            f"{path} does not say what network it is: name it to depfuse.load, or use build_network, then load_into"
        )
    if checkpoint.card.classes is not None:
        defaults = {"classes": len(checkpoint.card.classes), **defaults}
    network = build_network(checkpoint.card.architecture, trust=trust, fitting=checkpoint.state, **defaults)
    load_into(network, checkpoint)
    return network.eval()


def _widen(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Give a network the shapes of a checkpoint whose card says that it is wider than its architecture."""
    own = model.state_dict()
    shapes = {key: tensor.shape for key, tensor in checkpoint.state.items() if key in own}
    if any(
        len(shape) != own[key].dim() or min(map(sub, shape, own[key].shape), default=0) < 0
        for key, shape in shapes.items()
    ):
        return  # another network: what does not fit is named where its weights are put in
    resize(model, shapes)


def _reason(model: nn.Module, checkpoint: Checkpoint, missing: list[str], extra: list[str]) -> str:
    """Suggest why names are missing or left over."""
    if any(_ADAPTER.search(key) for key in extra):
        return (
            "it holds an adapter (LoRA), which changes another network: put it into that one (merge_and_unload of"
            " peft), and give all of its weights"
        )
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    if missing and {key.rpartition(".")[0] for key in missing} <= norms and all(key.endswith("bias") for key in extra):
        return (
            "its BatchNorm seems to be fused into its convolutions: give the weights as they were before that, or name"
            " the architecture without BatchNorm"
        )
    return "; ".join([*[checkpoint.holds] * bool(checkpoint.holds), _advice(checkpoint.card)])


def _advice(card: Card | None) -> str:
    """Suggest what to check where tensors do not fit a network."""
    if card is None:
        return "check the architecture"
    classes = "" if card.classes is None else f" with {len(card.classes)} classes"
    return f"its card says that it is a {shown(card.architecture)}{classes}"


def _few(keys: list[str]) -> str:
    shown = ", ".join(keys[:3])
    rest = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{shown}{rest} {'is' if len(keys) == 1 else 'are'}"
