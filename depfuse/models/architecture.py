"""Architecture strings, which name networks. Nothing here needs torch.

=====================  ============================================================
what is written        what is built
=====================  ============================================================
``NAME``               a built-in network of `NETWORKS`
``torchvision:NAME``   torchvision's network of that name, with random weights
``timm:NAME``          timm's network of that name, with random weights
``transformers:NAME``  transformers' class of that name, with random weights
``spandrel:NAME``      spandrel's network of that name, with random weights
``FILE.py:FACTORY``    what that function or class of the user's own file returns
``MODULE:FACTORY``     the same of a module that can be imported
=====================  ============================================================

Each may be followed by ``(key=value, ...)`` with plain Python values; those of transformers are the entries of a
configuration, such as ``depths=[1, 1]``. The short names such as
``resnet18`` are the built-in networks for small images; torchvision's is ``torchvision:resnet18``.
Where a file names its network, and not the user, the last two are refused; see `depfuse.models.origin`.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from depfuse.errors import ArchitectureError
from depfuse.models.origin import FromFile, shown, why_not

if TYPE_CHECKING:
    from torch import nn

# What a setting is called here -> what networks of others call it, in the order in which they are looked for.
OTHER_NAMES = {
    "classes": ("classes", "num_classes", "n_classes", "nclasses", "nb_classes", "num_labels"),
    "in_channels": ("in_channels", "in_chans", "input_channels"),
}


@dataclass(frozen=True)
class Network:
    """A built-in network: its factory, as `module:function`, and the shape (C, H, W) of its images."""

    place: str
    example: tuple[int, int, int] = (3, 32, 32)

    @property
    def factory(self) -> Callable[..., nn.Module]:
        """Import the function that builds it, which needs torch."""
        module, _, function = self.place.partition(":")
        factory: Callable[..., nn.Module] = getattr(importlib.import_module(f"depfuse.models.{module}"), function)
        return factory


NETWORKS: dict[str, Network] = {
    "cifar_resnet18": Network("resnet:cifar_resnet18"),
    "cifar_resnet34": Network("resnet:cifar_resnet34"),
    "cifar_resnet50": Network("resnet:cifar_resnet50"),
    "cifar_resnet20": Network("thin_resnet:cifar_resnet20"),
    "cifar_resnet32": Network("thin_resnet:cifar_resnet32"),
    "cifar_resnet44": Network("thin_resnet:cifar_resnet44"),
    "cifar_resnet56": Network("thin_resnet:cifar_resnet56"),
    "vgg11": Network("vgg:vgg11"),
    "vgg16": Network("vgg:vgg16"),
    "digits_resnet": Network("digits:digits_resnet", (1, 8, 8)),
}

# Other names of these networks.
ALIASES: dict[str, str] = {
    **{name.removeprefix("cifar_"): name for name in NETWORKS if name.startswith("cifar_")},
    "cifar_vgg11": "vgg11",
    "cifar_vgg16": "vgg16",
}

_ARCHITECTURE = re.compile(r"(?:(?P<source>.+):)?(?P<name>[A-Za-z_][\w.\-]*)\s*(?P<arguments>\(.*\))?", re.DOTALL)
_LONGEST = 8192  # characters of an architecture, the path of its file included


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
    if head.strip().endswith(".py") and len(arch) <= _LONGEST:
        raise ArchitectureError(
            f"{shown(head.strip())} is a file: say which function or class of it builds the network, like"
            f" {shown(head.strip())}:Net"
        )
    match = None if len(arch) > _LONGEST else _ARCHITECTURE.fullmatch(head.strip() + bracket + rest)
    if match is None:
        raise ArchitectureError(
            f"{shown(arch)!r} is no architecture: write NAME, torchvision:NAME, timm:NAME, transformers:NAME, "
            f"spandrel:NAME, FILE.py:FACTORY or MODULE:FACTORY, each with (key=value, ...) if need be"
        )
    arguments = _parse_arguments(arch, match["arguments"]) if match["arguments"] else {}
    source = (match["source"] or "").strip()
    name = ALIASES.get(match["name"], match["name"]) if not source else match["name"]
    return Architecture(arch, source, name, arguments)


def check_built_in(architecture: Architecture) -> None:
    """Raise `ArchitectureError` where a name without a source is none of a built-in network."""
    if architecture.source == "" and architecture.name not in NETWORKS:
        near = near_names(architecture.name, [*NETWORKS, *ALIASES])
        raise ArchitectureError(f"there is no built-in network {shown(architecture.name)}{near}")


def family(arch: str) -> tuple[str, str]:
    """Return what architectures of different widths share: source and name."""
    architecture = parse_architecture(arch)
    return architecture.source, architecture.name


def with_classes(arch: str, classes: int) -> str:
    """Replace the number of classes in an architecture string, where it has one."""
    arguments = parse_architecture(arch).arguments
    return with_arguments(arch, **{key: classes for key in OTHER_NAMES["classes"] if key in arguments})


def with_arguments(arch: str, **changed: Any) -> str:
    """Replace some arguments of an architecture string: `resnet18(width=0.5)` by `resnet18(width=1)`, say."""
    architecture = parse_architecture(arch)
    arguments = {**architecture.arguments, **changed}
    if arguments == architecture.arguments:
        return arch
    head = architecture.text.partition("(")[0].strip()
    changed_text = f"{head}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    return FromFile(changed_text) if isinstance(arch, FromFile) else changed_text


def needs_trust(arch: str) -> str | None:
    """Explain why an architecture is not built when a file names it, as the rest of a sentence; None if it is built.

    Raises
    ------
    ArchitectureError
        The string is no architecture.
    """
    architecture = parse_architecture(arch)
    return why_not(architecture.source, architecture.arguments)


def near_names(name: str, names: list[str]) -> str:
    """Suggest known names similar to an unknown one, or list the first of them."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f": did you mean {' or '.join(near)}?" if near else f": there are {', '.join(sorted(names)[:12])}, ..."


def _parse_arguments(arch: str, text: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"f{text}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):  # not f(...)(...), which is two
            raise ValueError
        if call.args or any(k.arg is None for k in call.keywords):
            raise ValueError
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        if len(arguments) < len(call.keywords):  # an argument is repeated
            raise ValueError
        return arguments
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # the last ones where it is nested deeply
        raise ArchitectureError(
            f"{shown(arch)!r}: the arguments must be like (key=value, ...) with plain numbers, texts and tuples"
        ) from None
