"""The diagonal Fisher information of a network: how much each parameter affects its predictions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from depfuse.data.inputs import count_samples, map_tensors, split_samples
from depfuse.data.loader import Loader
from depfuse.errors import ArchitectureError
from depfuse.networks.forward import run_network, run_with
from depfuse.networks.memory_format import differentiable
from depfuse.networks.running import evaluating
from depfuse.tasks.outputs import task_by_shape
from depfuse.tasks.task import Task
from depfuse.text import first_line

IMAGES = 500  # calibration images that the information is summed over
AT_ONCE = 125  # images differentiated at a time
MOST_BYTES = 2**29  # of all images' gradients at a time


def fisher_information(
    model: nn.Module,
    loader: Loader,
    *,
    images: int = IMAGES,
    draws: int | None = 1,
    seed: int = 0,
    task: Task | None = None,
) -> dict[str, Tensor]:
    r"""Estimate the diagonal Fisher information without labels (Matena & Raffel 2022, section 3.1).

    :math:`F_i = \frac1N \sum_x \mathbb E_{y \sim p(y|x)} (\partial_i \log p(y|x))^2`. With J the derivatives of the
    logits by the parameters, that is the diagonal of :math:`J^\top B^\top B J`, where row c of B is
    :math:`\sqrt{p_c} (e_c - p)`. For a vector s of random signs, the squares of :math:`s^\top B J` have this
    expectation, so that one backward pass sees every class, however unlikely. Drawing y instead would rarely see
    anything but the most likely class of a confident network.

    Parameters
    ----------
    model
        Any network; it runs in evaluation mode and is left as it was. Outputs that are no class scores count as the
        means of Gaussians with unit variance.
    loader
        Its first images are used; labels are not read.
    images
        Largest number of images to use.
    draws
        Vectors of signs per image; None for the exact expectation, with one backward pass per class.
    seed
        Of the signs.
    task
        What the outputs mean; by their shape where None.

    Returns
    -------
    dict
        State-dict key of each parameter -> float64, of its shape.

    Raises
    ------
    ArchitectureError
        The network's operations cannot be differentiated image by image.
    """
    parameters = {key: tensor.detach() for key, tensor in model.named_parameters()}
    buffers = {key: tensor.detach() for key, tensor in model.named_buffers()}
    generator = torch.Generator().manual_seed(seed)

    def squares(image: Tensor, signs: Tensor) -> dict[str, Tensor]:
        """Sum squared gradients over the rows of signs (K, outputs), for one image."""
        logits, backward = vjp(  # type: ignore[misc]
            lambda values: run_with(model, {**values, **buffers}, map_tensors(lambda leaf: leaf[None], image))[0],
            parameters,
        )
        vectors = meaning.factor(logits, signs)
        (gradients,) = vmap(backward)(vectors.reshape(len(vectors), *logits.shape))
        return {key: gradient.abs().square().sum(0) for key, gradient in gradients.items()}

    used = loader.first(images)
    total = {key: torch.zeros_like(tensor, dtype=torch.float64) for key, tensor in parameters.items()}
    with torch.no_grad(), evaluating(model), differentiable(loader.device):
        output = run_network(model, used.example())
        meaning, classes = task or task_by_shape(output), output[0].numel()
        rows = classes if draws is None else draws
        size = sum(tensor.numel() for tensor in parameters.values())
        at_once = min(AT_ONCE, max(1, MOST_BYTES // (4 * rows * max(1, size))))
        for batch, _ in used:
            for part in split_samples(batch, at_once):
                if draws is None:
                    signs = torch.eye(classes, dtype=torch.float32).expand(count_samples(part), -1, -1)
                else:
                    signs = torch.randint(0, 2, (count_samples(part), draws, classes), generator=generator) * 2.0 - 1.0
                    signs = signs / draws**0.5
                for key, square in _mapped(squares, model, part, signs.to(output)).items():
                    total[key] += square.sum(0, dtype=torch.float64)
    mean_by_tensor = {id(tensor): total[key] / used.count for key, tensor in model.named_parameters()}
    return {key: mean_by_tensor[id(tensor)] for key, tensor in model.named_parameters(remove_duplicate=False)}


def _mapped(function: object, model: nn.Module, images: Tensor, signs: Tensor) -> dict[str, Tensor]:
    try:
        results: dict[str, Tensor] = vmap(function)(images, signs)  # type: ignore[arg-type]
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = first_line(error)
        raise ArchitectureError(
            f"{type(model).__name__} cannot be differentiated image by image ({reason}): choose average mean"
        ) from error
    return results
