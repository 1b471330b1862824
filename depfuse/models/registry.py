"""Build the network that an architecture string names; its forms are listed in `depfuse.models.architecture`."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from depfuse.errors import ArchitectureError
from depfuse.models.architecture import (
    NETWORKS,
    OTHER_NAMES,
    Architecture,
    check_built_in,
    near_names,
    parse_architecture,
    with_arguments,
)
from depfuse.models.bounded import build_bounded
from depfuse.models.origin import REGISTRIES, FromFile, shown, why_not
from depfuse.models.sources import describe_error, ending, load_module
from depfuse.models.spandrel_networks import spandrel_factory
from depfuse.models.transformers_networks import transformers_factory
from depfuse.networks.copying import runnable, unwrap
from depfuse.networks.isolation import keeping_defaults
from depfuse.tasks.batch_inputs import kind_of

# Library -> name of an argument here -> its name there.
_RENAMED = {
    "torchvision": {"classes": "num_classes"},
    "timm": {"classes": "num_classes", "in_channels": "in_chans"},
    "transformers": {"classes": "num_labels", "in_channels": "num_channels"},
    "spandrel": {},
}

# What networks were built as, as long as they exist.
_BUILT: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def build_network(
    arch: str, *, trust: bool = False, fitting: Mapping[str, Tensor] | None = None, **defaults: Any
) -> nn.Module:
    """Build the network that an architecture string names, with fresh random weights.

    Nothing is downloaded. Seed torch first where the initial weights matter.

    Parameters
    ----------
    arch
        See the table in `depfuse.models.architecture`. A plain string comes from the caller; a card's `architecture`
        comes from a file, and is built only from the registries and no larger than `fitting`.
    trust
        Treat a file's string as the caller's: import and call what it names.
    fitting
        The tensors to be loaded into the network.
    **defaults
        Settings such as ``classes`` or ``in_channels`` that are used where the string does not set them and
        the factory accepts them.

    Raises
    ------
    ArchitectureError
        The string does not resolve, or what it names raises or does not return a network, or a file names it and it is
        code outside of the registries.
    """
    architecture = parse_architecture(arch)
    if isinstance(arch, FromFile):
        if trust:
            arch = str(arch)
        elif reason := why_not(architecture.source, architecture.arguments):
            raise ArchitectureError(
                f"{shown(arch)} {reason}: give `trust=True` if the file is yours, or build the network yourself"
            )
        elif architecture.source:
            _check_installed(architecture.source)
    factory = _resolve(architecture)
    arguments = {**_known(factory, defaults, architecture.source), **architecture.arguments}
    if architecture.source not in REGISTRIES:
        check_arguments(factory, arguments, arch.partition("(")[0].strip())
    try:
        with keeping_defaults():
            network = build_bounded(factory, arch, arguments, fitting)
    except ArchitectureError:
        raise
    except SystemExit as error:
        raise ArchitectureError(
            f"{shown(arch)}: building it {ending(error)}: give a function that reads no arguments of a program"
        ) from None
    except Exception as error:  # a user's factory may raise anything
        raise ArchitectureError(f"{shown(arch)}: building it raised {describe_error(error)}") from error
    if not isinstance(network, nn.Module):
        raise ArchitectureError(f"{arch}: {architecture.name} gave {kind_of(network)}, not a torch.nn.Module")
    network = runnable(getattr(network, "_orig_mod", network))  # a compiled one has other names, and compiles here
    _BUILT[network] = with_arguments(str(arch), **arguments)
    return network


def check_arguments(factory: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> None:
    """Raise `ArchitectureError` where a factory of the user's needs arguments that are not given."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind not in optional and parameter.name not in arguments
    ]
    if missing:
        form = ", ".join(f"{own}=..." for own in missing)
        raise ArchitectureError(f"{name} needs {' and '.join(missing)}: write {name}({form})")


def built_by(factory: Any, settings: Mapping[str, Any]) -> nn.Module:
    """Build a network by a class or function, and of a LightningModule without a forward of its own take that inside.

    See `made_by` for the arguments, and for what is raised.
    """
    return runnable(made_by(factory, settings))


def made_by(factory: Any, settings: Mapping[str, Any]) -> nn.Module:
    """Build a network by a class or function, with the settings of a file that it takes.

    Raises
    ------
    ArchitectureError
        It is neither, needs other arguments, or gives no network.
    """
    made: object = None
    if callable(factory) and not isinstance(factory, nn.Module):
        plain = {name: value for name, value in settings.items() if why_not("", {name: value}) is None}
        arguments = _known(factory, plain, "")
        check_arguments(factory, arguments, getattr(factory, "__name__", type(factory).__name__))
        made = factory(**arguments)
    if not isinstance(made, nn.Module):
        raise ArchitectureError(
            f"a {type(factory).__name__} does not say what network it is: give an architecture, or a class or function"
            " that builds a network"
        )
    return made


def with_settings(arch: str, settings: Mapping[str, Any]) -> str:
    """Add the settings that a file says its network was built with, where it is the user's own and takes them.

    What the string says stays. A setting that could make the network read or fetch something, or is no plain value, is
    left out, see `depfuse.models.origin.why_not`.
    """
    architecture = parse_architecture(arch)
    plain = {name: value for name, value in settings.items() if why_not("", {name: value}) is None}
    if not plain or architecture.source in REGISTRIES or isinstance(arch, FromFile):
        return arch
    return with_arguments(arch, **{**_known(_resolve(architecture), plain, ""), **architecture.arguments})


def architecture_of(network: nn.Module) -> str | None:
    """Return what a network was built as by `build_network`, with all arguments; None for any other, and for copies."""
    return _BUILT.get(unwrap(network))


def _resolve(architecture: Architecture) -> Callable[..., nn.Module]:
    if architecture.source == "":
        check_built_in(architecture)
        return NETWORKS[architecture.name].factory
    if architecture.source == "torchvision":
        return _torchvision_factory(architecture.name)
    if architecture.source == "timm":
        return _timm_factory(architecture.name)
    if architecture.source == "transformers":
        return transformers_factory(architecture.name)
    if architecture.source == "spandrel":
        return spandrel_factory(architecture.name)
    module = load_module(architecture.text, architecture.source)
    value: Any = module
    for part in architecture.name.split("."):
        if not hasattr(value, part):
            names = [name for name in dir(value) if callable(getattr(value, name)) and not name.startswith("_")]
            raise ArchitectureError(f"{architecture.source} has no {part}{near_names(part, names)}")
        value = getattr(value, part)
    if not callable(value) or isinstance(value, nn.Module):
        raise ArchitectureError(
            f"{architecture.text}: {architecture.name} is no function or class that builds a network"
        )
    return value  # type: ignore[no-any-return]


def _torchvision_factory(name: str) -> Callable[..., nn.Module]:
    from torchvision import models

    try:
        builder = models.get_model_builder(name)
    except ValueError:
        near = near_names(name, models.list_models())
        raise ArchitectureError(f"torchvision has no network {shown(name)}{near}") from None
    preset: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        preset["weights_backbone"] = None
    if name in ("inception_v3", "googlenet"):  # their own initialisation takes half a minute
        preset["init_weights"] = False
    return _preset(builder, preset)


def _timm_factory(name: str) -> Callable[..., nn.Module]:
    try:
        import timm
    except ImportError:
        raise ArchitectureError(f"timm:{name} needs timm, which is not installed: pip install timm") from None
    if not timm.is_model(name):
        raise ArchitectureError(f"timm has no network {shown(name)}{near_names(name, timm.list_models())}")
    return _preset(timm.create_model, {"model_name": name, "pretrained": False})


def _check_installed(library: str) -> None:
    """Refuse a file or folder of the current folder with the name of a library: it would be imported instead."""
    spec = None if library in sys.modules else importlib.util.find_spec(library)
    if spec is not None and spec.origin is not None and Path.cwd() in (Path(spec.origin).parents[:2]):
        raise ArchitectureError(f"{library} would be imported from the current folder, {spec.origin}: rename that file")


def _preset(builder: Callable[..., nn.Module], preset: dict[str, Any]) -> Callable[..., nn.Module]:
    def factory(**arguments: Any) -> nn.Module:
        return builder(**{**preset, **arguments})

    return factory


def _known(factory: Callable[..., nn.Module], defaults: dict[str, Any], source: str) -> dict[str, Any]:
    """Select the defaults that the factory accepts, under its own names; see `OTHER_NAMES` for those of a user's."""
    if source in _RENAMED:
        renamed = _RENAMED[source]
        return {renamed[key]: value for key, value in defaults.items() if key in renamed}
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    found = {key: next((own for own in OTHER_NAMES.get(key, (key,)) if own in parameters), None) for key in defaults}
    return {own: defaults[key] for key, own in found.items() if own is not None}
