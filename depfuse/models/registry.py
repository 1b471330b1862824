"""From an architecture's name to a network.

====================  ============================================================
what is written       what is built
====================  ============================================================
``NAME``              a built-in network of `NETWORKS`
``torchvision:NAME``  torchvision's network of that name, with random weights
``timm:NAME``         timm's network of that name, with random weights
``FILE.py:FACTORY``   what that function or class of the user's own file returns
``MODULE:FACTORY``    the same of a module that can be imported
====================  ============================================================

Each may be followed by ``(key=value, ...)`` with plain Python values. The short names such as
``resnet18`` are the built-in networks for small images; torchvision's is ``torchvision:resnet18``.
Where a file says what its network is, and not the user, the last two are refused; see `depfuse.models.origin`.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from depfuse.errors import ArchitectureError
from depfuse.models.digits import digits_resnet
from depfuse.models.origin import FromFile, built, shown, why_not
from depfuse.models.resnet import cifar_resnet18, cifar_resnet34, cifar_resnet50
from depfuse.models.thin_resnet import cifar_resnet20, cifar_resnet32, cifar_resnet44, cifar_resnet56
from depfuse.models.vgg import vgg11, vgg16


@dataclass(frozen=True)
class Network:
    """A built-in network: what builds it, and the images (C, H, W) it was made for."""

    factory: Callable[..., nn.Module]
    example: tuple[int, int, int] = (3, 32, 32)


NETWORKS: dict[str, Network] = {
    "cifar_resnet18": Network(cifar_resnet18),
    "cifar_resnet34": Network(cifar_resnet34),
    "cifar_resnet50": Network(cifar_resnet50),
    "cifar_resnet20": Network(cifar_resnet20),
    "cifar_resnet32": Network(cifar_resnet32),
    "cifar_resnet44": Network(cifar_resnet44),
    "cifar_resnet56": Network(cifar_resnet56),
    "vgg11": Network(vgg11),
    "vgg16": Network(vgg16),
    "digits_resnet": Network(digits_resnet, (1, 8, 8)),
}

# The same networks under the names that people try first.
ALIASES: dict[str, str] = {
    **{name.removeprefix("cifar_"): name for name in NETWORKS if name.startswith("cifar_")},
    "cifar_vgg11": "vgg11",
    "cifar_vgg16": "vgg16",
}

_ARCHITECTURE = re.compile(r"(?:(?P<source>.+):)?(?P<name>[A-Za-z_][\w.\-]*)\s*(?P<arguments>\(.*\))?", re.DOTALL)
_LONGEST = 8192  # characters of an architecture, the path of its file included
# What this package calls a setting, and what the libraries call it.
_RENAMED = {
    "torchvision": {"classes": "num_classes"},
    "timm": {"classes": "num_classes", "in_channels": "in_chans"},
}


@dataclass(frozen=True)
class Architecture:
    """An architecture string, taken apart: `source` is ``""`` for the built-in networks."""

    text: str
    source: str
    name: str
    arguments: dict[str, Any]


def parse_architecture(arch: str) -> Architecture:
    """Take an architecture string apart, without building or importing anything.

    Raises
    ------
    ArchitectureError
        It is not of one of the forms above, or its arguments are not plain Python values.
    """
    # Greedy on the source: a Windows path and a timm tag may hold colons and dots of their own.
    head, bracket, rest = arch.strip().partition("(")
    match = None if len(arch) > _LONGEST else _ARCHITECTURE.fullmatch(head.strip() + bracket + rest)
    if match is None:
        raise ArchitectureError(
            f"{shown(arch)!r} is no architecture: write NAME, torchvision:NAME, timm:NAME, FILE.py:FACTORY "
            f"or MODULE:FACTORY, each with (key=value, ...) if need be"
        )
    arguments = _parse_arguments(arch, match["arguments"]) if match["arguments"] else {}
    source = (match["source"] or "").strip()
    name = ALIASES.get(match["name"], match["name"]) if not source else match["name"]
    return Architecture(arch, source, name, arguments)


def with_classes(arch: str, classes: int) -> str:
    """The architecture string with another number of classes, where it sets one."""
    own = parse_architecture(arch).arguments
    return with_arguments(arch, **{key: classes for key in ("classes", "num_classes") if key in own})


def with_arguments(arch: str, **changed: Any) -> str:
    """The architecture string with some arguments set anew: `resnet18(width=0.5)` at width 1, say."""
    architecture = parse_architecture(arch)
    arguments = {**architecture.arguments, **changed}
    if arguments == architecture.arguments:
        return arch
    head = architecture.text.partition("(")[0].strip()
    changed_text = f"{head}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    return FromFile(changed_text) if isinstance(arch, FromFile) else changed_text


def needs_trust(arch: str) -> str | None:
    """Say why an architecture is not built in the words of a file, which go on after "which"; None if it is.

    Raises
    ------
    ArchitectureError
        It is none.
    """
    architecture = parse_architecture(arch)
    return why_not(architecture.source, architecture.arguments)


def build_network(
    arch: str, *, trust: bool = False, fitting: Mapping[str, Tensor] | None = None, **defaults: Any
) -> nn.Module:
    """Build the network that an architecture string names, with fresh random weights.

    Nothing is downloaded. Seed torch first where the initial weights matter.

    Parameters
    ----------
    arch
        See the table at the head of this module. Plain text is the caller's own words; a card's `architecture` is a
        file's, and is built only from the registries and no larger than `fitting`.
    trust
        Take a file's words as the caller's own: import and call what they name.
    fitting
        The tensors that are to go into the network.
    **defaults
        Settings such as ``classes`` or ``in_channels`` that are used where the string does not set them and
        what builds the network knows them.

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
                f"{shown(arch)} {reason}: give trust=True if the file is yours, or build the network yourself"
            )
        elif architecture.source:
            _check_installed(architecture.source)
    factory = _resolve(architecture)
    arguments = {**_known(factory, defaults, architecture.source), **architecture.arguments}
    try:
        network = built(factory, arch, arguments, fitting)
    except ArchitectureError:
        raise
    except Exception as error:  # a user's factory may raise anything
        raise ArchitectureError(f"{shown(arch)}: building it raised {_sentence(error)}") from error
    if not isinstance(network, nn.Module):
        raise ArchitectureError(f"{arch}: {architecture.name} gave a {type(network).__name__}, not a torch.nn.Module")
    return network


def _parse_arguments(arch: str, text: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"f{text}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):  # not f(...)(...), which is two
            raise ValueError
        if call.args or any(k.arg is None for k in call.keywords):
            raise ValueError
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        if len(arguments) < len(call.keywords):  # one of them stands twice
            raise ValueError
        return arguments
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # the last ones where it is nested deeply
        raise ArchitectureError(
            f"{shown(arch)!r}: the arguments must be like (key=value, ...) with plain numbers, texts and tuples"
        ) from None


def _resolve(architecture: Architecture) -> Callable[..., nn.Module]:
    if architecture.source == "":
        if architecture.name not in NETWORKS:
            near = _near(architecture.name, [*NETWORKS, *ALIASES])
            raise ArchitectureError(f"there is no built-in network {shown(architecture.name)}{near}")
        return NETWORKS[architecture.name].factory
    if architecture.source == "torchvision":
        return _torchvision_factory(architecture.name)
    if architecture.source == "timm":
        return _timm_factory(architecture.name)
    module = _load_module(architecture.text, architecture.source)
    found: Any = module
    for part in architecture.name.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if callable(getattr(found, name)) and not name.startswith("_")]
            raise ArchitectureError(f"{architecture.source} has no {part}{_near(part, names)}")
        found = getattr(found, part)
    if not callable(found):
        raise ArchitectureError(
            f"{architecture.text}: {architecture.name} is no function or class that builds a network"
        )
    return found  # type: ignore[no-any-return]


def _torchvision_factory(name: str) -> Callable[..., nn.Module]:
    from torchvision import models

    try:
        builder = models.get_model_builder(name)
    except ValueError:
        near = _near(name, models.list_models())
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
        raise ArchitectureError(f"timm has no network {shown(name)}{_near(name, timm.list_models())}")
    return _preset(timm.create_model, {"model_name": name, "pretrained": False})


def _check_installed(library: str) -> None:
    """Refuse what lies in the current folder and has the name of a library: a file may not have it imported."""
    spec = None if library in sys.modules else importlib.util.find_spec(library)
    if spec is not None and spec.origin is not None and Path.cwd() in (Path(spec.origin).parents[:2]):
        raise ArchitectureError(f"{library} would be imported from the current folder, {spec.origin}: rename that file")


def _preset(builder: Callable[..., nn.Module], preset: dict[str, Any]) -> Callable[..., nn.Module]:
    def factory(**arguments: Any) -> nn.Module:
        return builder(**{**preset, **arguments})

    return factory


def _known(factory: Callable[..., nn.Module], defaults: dict[str, Any], source: str) -> dict[str, Any]:
    """Those of the defaults that the factory takes, under the names it knows."""
    if source in _RENAMED:
        renamed = _RENAMED[source]
        return {renamed[key]: value for key, value in defaults.items() if key in renamed}
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    return {key: value for key, value in defaults.items() if key in parameters}


_loaded: dict[str, None] = {}


def loaded_sources() -> list[str]:
    """Files and modules of the user's that networks were built from."""
    return list(_loaded)


def load_sources(sources: Sequence[str]) -> None:
    """Load what another process built networks from, so that they can be taken over from it.

    Raises
    ------
    ArchitectureError
        There is no such file or module here.
    """
    for source in sources:
        if source not in _loaded:
            _load_module(source, source)


def _load_module(arch: str, source: str) -> Any:
    is_file = source.endswith(".py")
    path = Path(source).expanduser()
    if is_file and not path.is_file():
        raise ArchitectureError(f"{arch}: there is no file {source}")
    try:
        if not is_file:
            with _importable(Path.cwd()):
                module = importlib.import_module(source)
            _loaded[source] = None
            return module
        digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
        name = f"depfuse_user_{path.stem}_{digest}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickles look their module up there
        try:
            with _importable(path.resolve().parent):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        _loaded[source] = None
        return module
    except ModuleNotFoundError as error:
        if error.name is not None and source.split(".")[0] == error.name.split(".")[0]:
            raise ArchitectureError(
                f"{arch}: there is no module {source} here: "
                f"a source is torchvision, timm, a file ending in .py "
                f"or a module that can be imported"
            ) from None
        raise ArchitectureError(f"{arch}: importing {source} raised {_sentence(error)}") from error
    except Exception as error:  # the user's file may raise anything
        raise ArchitectureError(f"{arch}: importing {source} raised {_sentence(error)}") from error


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a user's file import what lies beside it, as Python does when it runs the file."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f": did you mean {' or '.join(near)}?" if near else f": there are {', '.join(sorted(known)[:12])}, ..."


def _sentence(error: BaseException) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
