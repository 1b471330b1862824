r"""Variance collapse from averaging, undone from the weights alone, without any image.

Where dissimilar parents are averaged, their weights partly cancel, and so does the variance of a layer's output over
images; biases and means do not, and in the end they drown the signal, the more so the deeper the network.
The smallest example is one channel :math:`y = w^\top x` whose inputs are uncorrelated and have variance one: its
deviation is :math:`\lVert w \rVert`. The average of two parents with orthogonal weights of norm one has
:math:`1/\sqrt 2` of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from depfuse.align.coupling import apply_couplings
from depfuse.merge.aligned import AlignedParents
from depfuse.merge.shares import Shares
from depfuse.networks.forward import Example
from depfuse.renorm.layers import Layer, factors, find_layers, in_order
from depfuse.renorm.reset import BATCH_NORM


def rescale_by_norms(child: nn.Module, parents: AlignedParents, example: Example) -> None:
    r"""Restore the parents' deviations in each layer's outputs, estimated from the weights, in place.

    With :math:`w_p` the weights of an output channel in parent p before matching, :math:`s_p` the parent's share and
    :math:`T_p` its coupling to the child's channels:

    - A layer without BatchNorm gets weights of the parents' norm: the average :math:`\bar w = \sum_p s_p T_p w_p` times
      :math:`\sum_p s_p T_p \lVert w_p \rVert / \lVert \bar w \rVert`. Its bias stays the average.
    - A BatchNorm behind a layer gets the variance of an average of signals that are as correlated as their weights,
      :math:`\lVert \sum_p s_p T_p \, \sigma_p w_p / \lVert w_p \rVert \rVert^2`, where :math:`\sigma_p` is the
      deviation that it has in parent p. The layer's weights, and the means, stay the average.
    - A BatchNorm behind anything else gets the parents' deviation :math:`\sum_p s_p T_p \sigma_p`, which the layers
      before it have again.

    Each layer is corrected for its own loss alone, so that both operands of an addition have their parents' deviation
    however much either had lost. In a network of positively homogeneous operations without additions and BatchNorm, it
    equals, but for the scale of the outputs, leaving the weights and dividing the bias of layer k by the loss of all
    layers up to k: a bias correction by depth.

    Signals that vanish beside biases: Qu & Horvath 2024 (arXiv 2402.05966); the variance that collapses: Jordan et al.
    2023 (REPAIR), section 3; its estimate from the correlation of weights: Wang et al. 2025 (model folding,
    arXiv 2502.10216).

    Parameters
    ----------
    child
        The merged network, of the parents' architecture.
    parents
        What it is merged of.
    example
        An input (N, C, H, W) to see which BatchNorm follows which layer; its values do not matter.

    Raises
    ------
    RecipeError
        There is a BatchNorm of another kind than torch's own.
    """
    networks = [child, *parents.networks]
    layers = [layer for layer in find_layers(child, example, "renorm data-free") if _is_shaped_alike(layer, networks)]
    norms = [layer.name for layer in layers if isinstance(child.get_submodule(layer.name), BATCH_NORM)]
    sources = _sources(layers, norms)
    bare = [layer.name for layer in layers if layer.name not in {*norms, *sources.values()}]
    signals: dict[str, Tensor] = {}
    goals: dict[str, Tensor] = {}
    shares = Shares.create(parents.shares)
    for number, (parent, coupling, _) in enumerate(
        zip(parents.networks, parents.couplings, shares.network, strict=True)
    ):
        figures = {name: _deviation(parent, name) for name in [*norms, *bare]}
        state: dict[str, Tensor] = dict(parent.state_dict())
        for norm, source in sources.items():
            weight = state[f"{source}.weight"].double()
            state[f"{source}.weight"] = _scaled(weight, figures[norm] / _norms(weight).clamp_min(1e-300))
        moved = apply_couplings(parents.groups, coupling, state)
        for norm, source in sources.items():
            signals[norm] = signals.get(norm, 0.0) + shares.of(f"{source}.weight")[number] * moved[f"{source}.weight"]
        for name, figure in in_order(parent, parents.groups, coupling, figures).items():
            goals[name] = goals.get(name, 0.0) + shares.of(f"{name}.weight")[number] * figure
    with torch.no_grad():
        for name in norms:
            deviation = _norms(signals[name]) if name in sources else goals[name]
            child.get_buffer(f"{name}.running_var").copy_(deviation.square())
        for name in bare:
            weight = child.get_parameter(f"{name}.weight")
            weight.copy_(_scaled(weight.double(), factors(goals[name], _norms(weight))))


def _sources(layers: Sequence[Layer], norms: Sequence[str]) -> dict[str, str]:
    """Map BatchNorm -> the layer whose output it normalises, where no other BatchNorm does."""
    source_of = {layer.name: layer.source for layer in layers if layer.source is not None and layer.source not in norms}
    uses = Counter(source_of.values())
    return {norm: source for norm, source in source_of.items() if uses[source] == 1}


def _is_shaped_alike(layer: Layer, models: Sequence[nn.Module]) -> bool:
    """Tell whether a layer has one shape in all networks: heads of other labels do not."""
    key = f"{layer.name}.weight"
    return len({model.get_parameter(key).shape for model in models}) == 1


def _deviation(model: nn.Module, name: str) -> Tensor:
    """Return the deviation of each channel of a BatchNorm's inputs (C,), float64; of other layers the weights' norm."""
    if isinstance(model.get_submodule(name), BATCH_NORM):
        return model.get_buffer(f"{name}.running_var").double().sqrt()
    return _norms(model.get_parameter(f"{name}.weight"))


def _norms(weight: Tensor) -> Tensor:
    """Compute the norm of each row of a weight (C, ...), float64."""
    norms: Tensor = torch.linalg.vector_norm(weight.detach().double().flatten(1), dim=1)
    return norms


def _scaled(weight: Tensor, factors: Tensor) -> Tensor:
    """Scale the rows of a weight (C, ...) by factors (C,)."""
    return weight * factors.reshape(-1, *[1] * (weight.dim() - 1))
