"""Networks of transformers, built from the values of their configuration; nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from depfuse.errors import ArchitectureError
from depfuse.models.architecture import near_names
from depfuse.models.origin import shown


def transformers_factory(name: str) -> Callable[..., nn.Module]:
    """Return what builds the network of that class, with random weights, from entries of its configuration.

    Raises
    ------
    ArchitectureError
        transformers is not installed, or has no such network.
    """
    try:
        import transformers
    except ImportError:
        raise ArchitectureError(
            f"transformers:{name} needs transformers, which is not installed: pip install 'depfuse[huggingface]'"
        ) from None
    kind: Any = getattr(transformers, name, None) if name.isidentifier() and name[0].isupper() else None
    is_network = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    configuration: Any = getattr(kind, "config_class", None) if is_network else None
    if configuration is None:
        known = [own for own in dir(transformers) if own.endswith(("ForImageClassification", "Model"))]
        raise ArchitectureError(f"transformers has no network {shown(name)}{near_names(name, known)}")

    def build(**arguments: Any) -> nn.Module:
        network: nn.Module = kind(configuration(**arguments))
        return network

    return build
