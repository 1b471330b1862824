"""Networks of spandrel, which upscale, denoise or restore images, built by name and recognised by their tensors.

A file of theirs does not say what it is, and need not: the names and shapes of its tensors do. spandrel knows them; it
is asked for the class and its arguments, which are written as any architecture is, so that what follows builds the
network by them. Some of these files have the names of an older or newer version of the network: `renamed` says which
tensor of the file each one of the network is.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from depfuse.errors import ArchitectureError
from depfuse.models.architecture import near_names
from depfuse.models.bounded import Bounded
from depfuse.models.origin import FromFile, shown
from depfuse.models.upscalers import EXTRA, has_spandrel


@dataclass(frozen=True)
class Recognised:
    """A network of spandrel in a state dict.

    Attributes
    ----------
    architecture
        As `build_network` takes it.
    state
        The network's tensors, by its own names.
    names
        Name in the network -> name in the state dict, of the tensors that are the same.
    """

    architecture: FromFile
    state: dict[str, Tensor]
    names: dict[str, str]


def spandrel_factory(name: str) -> Callable[..., nn.Module]:
    """Return the class of that name, such as `Compact` or `RealCUGAN.UpCunet2x`.

    Raises
    ------
    ArchitectureError
        spandrel is not installed, or has no such network.
    """
    if not has_spandrel():
        raise ArchitectureError(f"spandrel:{name} needs spandrel, which is not installed: {EXTRA}")
    from spandrel import MAIN_REGISTRY

    known = [str(support.architecture.id) for support in MAIN_REGISTRY]
    family, _, own = name.partition(".")
    found = _classes(family).get(own or family) if family in known else None
    if found is None:
        known += [f"{family}.{each}" for each in (_classes(family) if family in known else ())]
        raise ArchitectureError(f"spandrel has no network {shown(name)}{near_names(name, known)}")
    return found


def recognise(state: Mapping[str, Tensor]) -> Recognised | None:
    """Recognise a network by the names and shapes of its tensors; None where it is none of spandrel's."""
    if not has_spandrel():
        return None
    from spandrel import MAIN_REGISTRY

    plain = {key: tensor.detach() for key, tensor in state.items()}
    with Bounded("the network that spandrel recognises", plain), torch.random.fork_rng(devices=[]):
        try:
            found = MAIN_REGISTRY.load(plain)
        except ArchitectureError:
            raise
        except Exception:  # no architecture is detected, or one that these tensors do not fit
            return None
        network = found.model
        architecture = _described(str(found.architecture.id), network)
        if architecture is None:
            return None
        return Recognised(architecture, network.state_dict(), _landed(found.architecture, plain, network))


def _described(family: str, network: nn.Module) -> FromFile | None:
    """Write the architecture of a network: its class, and the arguments that are not its defaults."""
    names = [name for name, own in _classes(family).items() if type(network) is own]
    arguments = getattr(network, "hyperparameters", None)
    if not names or not isinstance(arguments, dict):
        return None
    parameters = inspect.signature(type(network)).parameters
    given = {
        name: value for name, value in arguments.items() if name not in parameters or parameters[name].default != value
    }
    head = f"spandrel:{family}" if names[0] == family else f"spandrel:{family}.{names[0]}"
    return FromFile(f"{head}({', '.join(f'{name}={value!r}' for name, value in given.items())})")


def _classes(family: str) -> dict[str, type[nn.Module]]:
    """List the networks that a family of spandrel exports, by name."""
    package: Any = importlib.import_module(f"spandrel.architectures.{family}")
    exported = {name: getattr(package, name) for name in package.__all__}
    return {name: own for name, own in exported.items() if isinstance(own, type) and issubclass(own, nn.Module)}


def _landed(architecture: Any, state: Mapping[str, Tensor], network: nn.Module) -> dict[str, str]:
    """Find which tensor of a state dict each one of the network is, by numbers in their place.

    Tensors that spandrel changes as it loads them are left out.
    """
    own = network.state_dict()
    keys = list(state)
    numbers = {key: torch.tensor(float(place)).expand(state[key].shape) for place, key in enumerate(keys)}
    marked = architecture.load(numbers).model.state_dict()
    names = {}
    for name, tensor in marked.items():
        place = float(tensor.reshape(-1)[0]) if tensor.numel() else -1.0
        key = keys[int(place)] if place.is_integer() and 0 <= place < len(keys) else None
        if key is not None and bool((tensor == place).all()) and torch.equal(own[name], state[key].to(own[name].dtype)):
            names[name] = key
    return names
