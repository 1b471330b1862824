"""What the config.json of a folder of transformers or timm says: network, classes and pre-processing.

Nothing here needs torch or these libraries. A configuration is data: of it are taken the name of a class or of a
registered network, which the installed library is asked for, and plain values. Code that lies in the folder
(`auto_map`) is never run.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from depfuse.data.preprocessing import Preprocessing
from depfuse.errors import CheckpointError, DataError, DepfuseWarning
from depfuse.io.cards import Card
from depfuse.models.architecture import parse_architecture
from depfuse.models.origin import FromFile, shown

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
_BYTES = 2**24  # of a configuration
_CLASSES = 100_000
_WHITE = 255.0
# Entries that say how weights were stored or loaded, or that follow from others.
_STORED = """
    architectures model_type transformers_version torch_dtype dtype auto_map id2label label2id num_labels name_or_path
    attn_implementation experts_implementation pretrained_cfg stage_names out_features out_indices
"""
_NOT_OF_THE_NETWORK = frozenset(_STORED.split())
OF_IMAGES = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")  # of timm's configuration


def hub_card(folder: Path) -> Card | None:
    """Read what a folder says of its network; None where it is no folder of transformers or timm.

    Raises
    ------
    CheckpointError
        A configuration cannot be read, or its weights are quantised.
    """
    config = _content(folder / CONFIG) if folder.is_dir() else None
    if not config or "depfuse" in config:  # the card lies beside the weights
        return None
    made = _of_transformers(folder, config) or _of_timm(folder, config)
    if made is not None:
        parse_architecture(made.architecture)
    return made


def _of_transformers(folder: Path, config: Mapping[str, Any]) -> Card | None:
    listed = config.get("architectures")
    if not isinstance(config.get("model_type"), str) or not isinstance(listed, list) or not listed:
        return None
    name, path = str(listed[0]), folder / CONFIG
    if not name.isidentifier():
        raise CheckpointError(f"{path} names {shown(name)} as its network, which is no class of transformers")
    if config.get("quantization_config"):
        raise CheckpointError(f"{folder} holds quantised weights, says {CONFIG}: give the network before it")
    if config.get("auto_map"):
        warnings.warn(
            f"{path} names code of its own (auto_map), which is not run: transformers' own {shown(name)} is taken",
            DepfuseWarning,
            stacklevel=4,
        )
    arguments = {key: value for key, value in config.items() if _is_argument(key, value)}
    names = _names(path, config.get("id2label"))
    if names is not None:
        arguments["num_labels"] = len(names)
    default = names is not None and all(own == f"LABEL_{place}" for place, own in enumerate(names))
    preprocessing = _content(folder / PREPROCESSOR)
    return Card(
        architecture=FromFile(_written(f"transformers:{name}", arguments)),
        names=None if default else names,
        preprocessing=None if preprocessing is None else _checked(folder / PREPROCESSOR, _of_processor(preprocessing)),
    )


def _of_timm(folder: Path, config: Mapping[str, Any]) -> Card | None:
    name, described = config.get("architecture"), config.get("pretrained_cfg")
    if not isinstance(name, str) or not isinstance(described, dict):
        return None
    if not all(part.isidentifier() for part in name.split(".")[:1]):
        raise CheckpointError(f"{folder / CONFIG} names {shown(name)} as its network, which is none of timm")
    own = config.get("model_args")
    arguments = {key: value for key, value in own.items() if isinstance(key, str)} if isinstance(own, dict) else {}
    if "num_classes" in config:
        arguments.setdefault("num_classes", config["num_classes"])
    size = described.get("input_size")
    size = size if isinstance(size, list) and len(size) == 3 else None
    if size is not None and size[0] != 3:
        arguments.setdefault("in_chans", size[0])
    values = {"size": None if size is None else size[1:], "mean": described.get("mean"), "std": described.get("std")}
    return Card(
        architecture=FromFile(_written(f"timm:{name.split('.')[0]}", arguments)),
        names=_names(folder / CONFIG, config.get("label_names", described.get("label_names"))),
        preprocessing=_checked(folder / CONFIG, values),
    )


def describe(network: Any, folder: Path, card: Card) -> None:
    """Tell a network of transformers or timm what its folder says beside its shapes: names of classes, its images."""
    config: Any = getattr(network, "config", None)
    if config is not None and hasattr(config, "id2label"):
        config.name_or_path = str(folder)
        if card.names is not None and len(card.names) == len(config.id2label):
            config.id2label = dict(enumerate(card.names))
            config.label2id = {name: number for number, name in enumerate(card.names)}
    if isinstance(getattr(network, "pretrained_cfg", None), dict):
        found = (_content(folder / CONFIG) or {}).get("pretrained_cfg")
        said = {key: found[key] for key in OF_IMAGES if key in found} if isinstance(found, dict) else {}
        names = {} if card.names is None else {"label_names": list(card.names)}
        network.pretrained_cfg = {**network.pretrained_cfg, **said, **names}


def _content(path: Path) -> dict[str, Any] | None:
    """Read a configuration; None where there is none."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _BYTES:
            raise CheckpointError(f"{path} is larger than any configuration")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {type(error).__name__}") from None
    return content if isinstance(content, dict) else None


def _is_argument(key: str, value: Any) -> bool:
    """Tell whether an entry describes the network, and is not empty: an empty one is the library's default."""
    named = key.isidentifier() and not key.startswith("_") and key not in _NOT_OF_THE_NETWORK
    return named and value is not None and value not in ({}, [])


def _written(name: str, arguments: Mapping[str, Any]) -> str:
    if not arguments:
        return name
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _names(path: Path, labels: Any) -> tuple[str, ...] | None:
    """Read the names of classes, a list or number -> name; None where there are none."""
    if isinstance(labels, dict):
        found = {str(key): value for key, value in labels.items()}
        if sorted(found, key=lambda key: (len(key), key)) != [str(number) for number in range(len(found))]:
            raise CheckpointError(f"{path} names classes, but not for 0, 1, 2, ... in turn")
        labels = [found[str(number)] for number in range(len(found))]
    if not isinstance(labels, list) or not labels or len(labels) > _CLASSES:
        return None
    return tuple(map(str, labels))


def _of_processor(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the size of images and their normalisation: (255 x r - mean) / std for images x in [0, 1] and a factor r."""
    size = None
    if config.get("do_resize", True):
        size = _size(config.get("size"))
    if config.get("do_center_crop"):
        size = _size(config.get("crop_size")) or size
    factor = config.get("rescale_factor", 1 / _WHITE) if config.get("do_rescale", True) else 1.0
    factor = _WHITE * factor if isinstance(factor, (int, float)) and factor > 0 else 1.0
    normalised = config.get("do_normalize", True)
    mean, std = (config.get(name) if normalised else None for name in ("image_mean", "image_std"))
    if not math.isclose(factor, 1.0, rel_tol=1e-6):
        mean, std = ([value / factor for value in values] for values in (mean or [0.0], std or [1.0]))
    return {"size": size, "mean": mean, "std": std}


def _size(value: Any) -> list[int] | None:
    """Read (height, width) of any of the forms: a number, two, a shortest edge, height and width."""
    if isinstance(value, dict):
        value = value.get("shortest_edge", [value.get("height"), value.get("width")])
    if isinstance(value, int):
        value = [value, value]
    return value if isinstance(value, list) and len(value) == 2 and all(isinstance(own, int) for own in value) else None


def _checked(path: Path, values: Mapping[str, Any]) -> Preprocessing | None:
    if all(value is None for value in values.values()):
        return None
    try:
        return Preprocessing.create(**values)
    except (DataError, ValidationError, TypeError) as error:
        raise CheckpointError(f"{path}: {str(error).splitlines()[0]}") from None
