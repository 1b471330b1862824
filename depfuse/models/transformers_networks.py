"""Networks of transformers, built from the values of their configuration, and their names; nothing is fetched."""

from __future__ import annotations

import sys
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


def names_in_files(network: nn.Module) -> dict[str, str]:
    """Return what transformers calls a network's tensors in files, by the network's own names.

    Since its version 5 some networks have other names than their files, which keep those of earlier versions. Empty
    where the names are the same, and where a file has the tensors in another form.
    """
    library = sys.modules.get("transformers")
    if library is None or not isinstance(network, library.PreTrainedModel):
        return {}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before version 5
        return {}
    own = network.state_dict()
    names = {id(tensor): name for name, tensor in own.items()}
    written = revert_weight_conversion(network, dict(own))
    found = {names[id(tensor)]: name for name, tensor in written.items() if id(tensor) in names}
    return found if len(found) == len(own) and any(name != found[name] for name in found) else {}
