"""Read checkpoints of any common kind without running code, and write safetensors with a card."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import pickletools
import platform
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import sub
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from depfuse.data.memory import GIBIBYTE
from depfuse.data.preprocessing import Preprocessing
from depfuse.errors import CheckpointError, DepfuseWarning
from depfuse.io.foreign_pickles import Layout, is_plain_pickle, read_pickle, torch_names
from depfuse.models.origin import FromFile, shown
from depfuse.models.registry import build_network
from depfuse.networks.resizing import resize
from depfuse.text import storable

_CARD_KEY = "depfuse_card"
_NESTED_KEYS = ("state_dict", "model_state_dict", "model", "net")
_WRAPPERS = ("module.", "_orig_mod.")
# How much larger than its file what is in it may be: tensors may share their numbers, and little is compressed.
_TIMES, _BYTES = 16, 2**28
_LEGACY_PICKLES = 4  # a magic number, the protocol, the machine, and what was saved


class Parent(BaseModel):
    """A network that another one was made from."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    _storable = model_validator(mode="before")(storable)

    path: str
    digest: str


class Card(BaseModel):
    """What is known about a network beside its weights.

    Attributes
    ----------
    architecture
        As `depfuse.models.build_network` takes it, in the words of a file: nothing that it names is imported.
    data
        The data set it was trained or calibrated on, as `depfuse.data.load_data` takes it. A path that it names is not
        opened unless the user asks for it.
    preprocessing
        What its inputs went through.
    classes
        For each output, the label of the data set that it stands for; ``None`` where unknown.
    recipe
        The settings of the fusion or of the training that made it.
    seeds
        Every seed by what it was used for.
    parents
        The networks it was fused from.
    metrics
        What it reached; accuracies are fractions.
    versions
        Of the libraries that made it.
    widened
        Whether layers have more channels than the architecture says, since some of the parents' stand side by side.
    tensors
        Digest of the tensors that the card belongs to; set by `write_checkpoint`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    _storable = model_validator(mode="before")(storable)

    architecture: Annotated[str, AfterValidator(FromFile)]
    data: str | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[int, ...] | None = None
    recipe: dict[str, Any] | None = None
    seeds: dict[str, int] = Field(default_factory=dict)
    parents: tuple[Parent, ...] = ()
    metrics: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=lambda: library_versions())
    widened: bool = False
    tensors: str | None = None


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


def library_versions() -> dict[str, str]:
    """Collect the versions of what the result depends on."""
    from importlib import metadata

    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions["depfuse"] = metadata.version("depfuse")
    return versions


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
        The file is not there, is cut off, is no checkpoint, would have to run code, or has a card that
        contradicts its tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint file")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if not head:
        raise CheckpointError(f"{path} is empty")
    # By content, not by name. Safetensors starts with the length of its header (8 bytes, the lowest first) and the
    # header, so its first bytes may by chance be those of a pickle or a zip archive; theirs give no such length.
    card: Card | None = None
    layout: Layout = "torch"
    if head[8:9] == b"{" and head[4:8] == bytes(4):
        state, card = _load_safetensors(path)
    elif is_plain_pickle(head):
        loaded, layout = read_pickle(path)
        state = torch_names(_plain_state(path, loaded), layout)
    elif head.startswith((b"PK", b"\x80")):
        state = _plain_state(path, _load_torch(path))
    else:
        raise CheckpointError(f"{path} is no checkpoint: neither safetensors nor a file of torch.save")
    if not state:
        raise CheckpointError(f"{path} holds no tensors")
    _check_tensors(path, state)
    digest = state_digest(state)
    if card is not None and card.tensors not in (None, digest):
        raise CheckpointError(
            f"{path}: the card belongs to other weights than these: the file was changed after it was written"
        )
    return Checkpoint(path, state, card, digest, layout)


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put the weights of a checkpoint into a network; all of them must fit.

    ``num_batches_tracked`` of a BatchNorm may be missing, as in files of old versions of torch. Values of
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
    state = _in_layout_of(model, _in_names_of(own, checkpoint.state), checkpoint)
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    missing = [key for key in own if key not in state and key not in counters]
    extra = [key for key in state if key not in own]
    where = f"{checkpoint.path} does not fit {type(model).__name__}"
    if missing or extra:
        parts = [f"{_few(missing)} missing"] * bool(missing) + [f"{_few(extra)} left over"] * bool(extra)
        raise CheckpointError(f"{where}: {' and '.join(parts)}; {_advice(checkpoint.card)}")
    wrong = [key for key in state if state[key].shape != own[key].shape]
    if wrong:
        key = wrong[0]
        others = f" and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{where}: {key} has shape {tuple(state[key].shape)} in the file and "
            f"{tuple(own[key].shape)} in the network{others}; {_advice(checkpoint.card)}"
        )
    other = [key for key in state if state[key].is_complex() != own[key].is_complex()]
    if other:
        kinds = ("complex", "real") if state[other[0]].is_complex() else ("real", "complex")
        raise CheckpointError(f"{where}: {_few(other)} {kinds[0]} in the file and {kinds[1]} in the network")
    broken = [key for key in state if state[key].is_floating_point() and not state[key].isfinite().all()]
    if broken:
        raise CheckpointError(f"{checkpoint.path}: {_few(broken)} not finite (NaN or infinity): no usable network")
    with torch.no_grad():  # not by load_state_dict, which some networks refuse without their metadata
        for key, tensor in state.items():
            own[key].copy_(tensor)


def load_network(path: str | Path, *, trust: bool = False, **defaults: Any) -> nn.Module:
    """The network in a file that depfuse wrote, in evaluation mode on the CPU.

    Its card says what it is and how many classes it knows. Files of others have none, and go through `build_network`,
    `read_checkpoint` and `load_into`.

    Parameters
    ----------
    path
        The file.
    trust
        Import and call the function of a file or module that the card names as the network; for files of your own.
    **defaults
        Settings that the card's architecture leaves open, such as ``in_channels``; see `build_network`.

    Raises
    ------
    CheckpointError
        The file has no card; for what else, see `read_checkpoint` and `load_into`.
    ArchitectureError
        See `build_network`; the card names code of its own, and `trust` is not given.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.card is None:
        raise CheckpointError(f"{path} does not say what network it is: use build_network, then load_into")
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


def write_checkpoint(path: str | Path, state: Mapping[str, Tensor], card: Card) -> str:
    """Write a state dict and its card as safetensors, all or nothing, and return the tensors' digest.

    Raises
    ------
    CheckpointError
        The file cannot be written; what stood there before still does.
    """
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    digest = state_digest(tensors)
    described = {**card.model_dump(mode="json"), "tensors": digest}
    metadata = {_CARD_KEY: json.dumps(described, sort_keys=True)}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))
    return digest


def check_writable(path: str | Path) -> None:
    """Raise `CheckpointError` unless a file can be written at `path`; call it before long work."""
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} cannot be written: it is a folder")
    folder = path.absolute().parent
    while not folder.exists():  # `replacing` makes the folders that are missing
        folder = folder.parent
    with _one_sentence(path):
        probe = _temporary(folder / path.name)
        probe.touch()
        probe.unlink()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, which takes the place of `path` once the block has ended well.

    The folder is made where it does not exist. Whatever goes wrong, the file that stood at `path`
    stays as it was and nothing is left beside it.

    Raises
    ------
    CheckpointError
        The file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} cannot be written: it is a folder")
    with _one_sentence(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if storable(str(path)) == str(path):
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    content = path.read_bytes()  # the library opens no file whose name is no Unicode
    state = safetensors.torch.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return state, header.get("__metadata__") or {}


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], Card | None]:
    try:
        state, metadata = _read_safetensors(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or cut off: {_first_line(error)}") from None
    if _CARD_KEY not in metadata:
        return _without_wrappers(state), None
    try:
        card = Card.model_validate_json(metadata[_CARD_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "card"
        reason = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"{path}: its card cannot be read: {where}: {reason}") from None
    return state, card


def _check_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse tensors without numbers of their own, and those that show the few in the file very often."""
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
            raise CheckpointError(f"{path}: {shown(key)} is no plain tensor (sparse, quantised or without numbers)")
        if tensor.is_floating_point() and tensor.element_size() < 2:
            raise CheckpointError(
                f"{path}: {shown(key)} has 8 bits per number ({tensor.dtype}), which mean nothing without their scale: "
                "save the weights as float32, float16 or bfloat16"
            )
    _check_size(path, sum(tensor.numel() * tensor.element_size() for tensor in state.values()))


def _check_size(path: Path, needed: int) -> None:
    own = path.stat().st_size
    if needed > _TIMES * own + _BYTES:
        raise CheckpointError(
            f"{path} would take {needed / GIBIBYTE:.1f} GiB of memory, and is a file of {own} bytes: it is damaged"
        )


def _load_torch(path: Path) -> Any:
    if tarfile.is_tarfile(path):  # the oldest format, which torch before 2.6 unpickles whatever is in it
        raise CheckpointError(f"{path} is a tar archive, as torch before 0.1.10 wrote: load it there and save it anew")
    if zipfile.is_zipfile(path):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:  # torch says what is broken
            _check_size(path, sum(entry.file_size for entry in archive.infolist()))
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error) or _is_cut_off(path):
            raise CheckpointError(f"{path} is damaged or cut off: {_first_line(error)}") from None
        found = re.search(r"(?:GLOBAL|function|class|instantiate) ([\w.]+\.[\w.]+)", str(error))
        needs = f" ({found[1]})" if found else ""
        raise CheckpointError(
            f"{path} holds more than tensors and plain values{needs}, "
            f"and reading it could run code: "
            f"save the state dict alone, torch.save(model.state_dict(), path), where it was made"
        ) from None
    except Exception as error:  # torch has no one exception for a broken file
        if "TorchScript" in str(error):
            raise CheckpointError(f"{path} is a TorchScript program: save its state_dict() instead") from None
        raise CheckpointError(f"{path} is damaged or cut off: {_first_line(error)}") from None


def _is_cut_off(path: Path) -> bool:
    """Whether a file ends within the pickles that torch.save wrote before it wrote zip archives; nothing is called.

    A name that is cut off there looks like that of something else.
    """
    if zipfile.is_zipfile(path):
        return False
    with path.open("rb") as file:
        try:
            for _ in range(_LEGACY_PICKLES):
                for _ in pickletools.genops(file):
                    pass
        except ValueError:
            return True
    return False


def _harmless() -> list[Any]:
    """List what the numpy numbers that many training scripts keep beside the weights are made of."""
    scalar = np.float64(0).__reduce__()[0]  # its home is private and moved with numpy 2
    kinds = {type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")}
    return [scalar, np.dtype, *kinds]


def _plain_state(path: Path, loaded: Any) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        nested = [key for key in _NESTED_KEYS if isinstance(loaded.get(key), Mapping)]
        if not nested:
            break
        loaded = loaded[nested[0]]
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not the weights of a network by name")
    return _without_wrappers({str(key): value for key, value in loaded.items() if isinstance(value, Tensor)})


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what DataParallel and torch.compile put in front of every key."""
    for _ in range(4):
        for wrapper in _WRAPPERS:
            if state and all(key.startswith(wrapper) for key in state):
                state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def _in_names_of(own: Mapping[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give a wrapper's name back to the keys where the network itself has it."""
    for wrapper in _WRAPPERS:
        if own and all(key.startswith(wrapper) for key in own) and not any(k.startswith(wrapper) for k in state):
            return {wrapper + key: value for key, value in state.items()}
    return state


def _in_layout_of(model: nn.Module, state: dict[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Transpose the weights of linear layers where the file keeps them as (inputs, outputs)."""
    if checkpoint.layout == "torch":
        return state
    owned = [
        f"{name}.weight".removeprefix(".") for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    linear = [key for key in owned if key in state and state[key].dim() == 2]
    if checkpoint.layout == "paddle?":
        # The file as a whole has one layout, which a single weight that is not square gives away.
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        telling = [key for key in linear if shapes[key][0] != shapes[key][1]]
        if telling and all(state[key].shape == shapes[key] for key in telling):
            return state
        if linear and not telling:
            warnings.warn(
                f"{checkpoint.path} does not say whether its square linear weights are transposed: "
                "they are taken to be, as PaddlePaddle stores them",
                DepfuseWarning,
                stacklevel=3,
            )
    return {**state, **{key: state[key].T for key in linear}}


def _advice(card: Card | None) -> str:
    """What to look at where tensors do not fit a network."""
    if card is None:
        return "check the architecture"
    classes = "" if card.classes is None else f" with {len(card.classes)} classes"
    return f"its card says that it is a {shown(card.architecture)}{classes}"


def _few(keys: list[str]) -> str:
    shown = ", ".join(keys[:3])
    rest = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{shown}{rest} {'is' if len(keys) == 1 else 'are'}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
