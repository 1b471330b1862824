"""The networks of other people's libraries that the study of coverage goes through, each small and with an example.

A module of this folder is one library: `networks()` maps names to functions that build a network and an example for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from torch import nn

from depfuse.errors import RecipeError
from depfuse.networks.forward import Example

Make = Callable[[], tuple[nn.Module, Example]]
# Family of the command line -> the module that has its networks, and what has to be installed for it.
LIBRARIES = {
    "spandrel": ("spandrel_restorers", "spandrel"),
    "smp": ("smp_segmenters", "segmentation-models-pytorch"),
    "transformers": ("transformers_models", "transformers"),
    "torchvision_dense": ("torchvision_dense", "torchvision"),
    "pytorchcv": ("pytorchcv_models", "pytorchcv"),
    "monai": ("monai_models", "monai"),
    "vit_pytorch": ("vit_pytorch_models", "vit-pytorch"),
    "diffusers": ("diffusers_models", "diffusers"),
}


def networks(library: str) -> Mapping[str, Make]:
    """Map the names of a library's networks to what builds them; `RecipeError` where the library is not installed."""
    module, package = LIBRARIES[library]
    try:
        import_module(package.replace("-", "_"))
    except ImportError as error:
        raise RecipeError(
            f"{library}'s networks need {package}, which cannot be imported ({error}): pip install 'depfuse[coverage]'"
        ) from None
    found: Mapping[str, Make] = import_module(f"experiments.proofs.networks.{module}").networks()
    return found
