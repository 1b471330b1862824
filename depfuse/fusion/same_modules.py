"""Check that parents differ in their weights only: compare the modules, not only the tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_map

from depfuse.errors import DepfuseWarning, RecipeError
from depfuse.networks.copying import evaluation_copy, fit_example, random_like, tied_names, unwrap
from depfuse.networks.faithful import same_outputs
from depfuse.networks.forward import Example, run_network, run_with
from depfuse.networks.leaves import tensors_in
from depfuse.text import first_line

SCALE = 4.0  # of the random inputs, in standard deviations: large enough to reach where ReLU6 saturates
PLAIN = (int, float, bool, str, tuple, type(None))
# Attributes of torch's layers that follow from the width, and the mode.
NAMES = """
    in_channels out_channels in_features out_features num_features normalized_shape num_groups groups num_parameters
    embed_dim kdim vdim num_heads head_dim num_embeddings embedding_dim input_size hidden_size training
"""
SIZES = frozenset(NAMES.split())
# Those that do not change what a layer computes in evaluation mode: of BatchNorm, dropout, attention, and embeddings.
IN_TRAINING = frozenset(("momentum", "p", "dropout", "inplace", "sparse", "scale_grad_by_freq"))


def check_alike(models: Sequence[nn.Module], example: Example | None, template: nn.Module | None = None) -> None:
    """Check that every parent computes what the first one's modules do with its weights.

    The child has the modules of parent 1, or of the template. With f_1(theta, x) the function of its modules,
    f_1(theta_k, x) must equal the output of parent k, for the example and for random inputs of its shape. So
    activations, strides, an epsilon, attributes that `forward` reads, forward hooks, buffers that are not in the state
    dict, and tensors that cannot be averaged (an index) are all compared. Settings that do not show there (a momentum)
    are warned of.

    Parameters
    ----------
    models
        Networks with equal tensor names.
    example
        An input; where None, only the modules' classes and settings are compared, and those that count in training
        alone are warned of.
    template
        A network of the child's shapes, which must compute the same, too.

    Raises
    ------
    RecipeError
        A parent computes something else; names the first module whose output differs. Or it has two tensors where the
        child has one.
    """
    _check_tied("parent 1" if template is None else "the template", models[0] if template is None else template, models)
    both = [(f"parent {number}", f"parents 1 and {number}", model) for number, model in enumerate(models[1:], start=2)]
    both += [] if template is None else [("the template", "parent 1 and the template", template)]
    for name, pair, model in both:
        compared = example is not None and _compare(models[0], model, example, name)
        others = list(_other_settings(models[0], model))
        if not compared and (counted := next((text for text, counts in others if counts), None)):
            raise RecipeError(f"{pair} are other networks: they differ in {counted}")
        if not others:
            continue
        warnings.warn(
            f"{pair} differ in {others[0][0]}, which does not show in what they compute: the child has"
            f" {name if model is template else 'parent 1'}'s",
            DepfuseWarning,
            stacklevel=4,
        )


def _check_tied(name: str, like: nn.Module, models: Sequence[nn.Module]) -> None:
    """Raise `RecipeError` where the child's network shares a tensor between names that a parent has two tensors for."""
    for first, *others in tied_names(like.state_dict()):
        for number, model in enumerate(models, start=1):
            state = model.state_dict()
            if (other := next((key for key in others if not torch.equal(state[first], state[key])), None)) is not None:
                advice = f"give parent {number} first" if name == "parent 1" else "give one that has two as well"
                raise RecipeError(
                    f"{name} has one tensor for {first} and {other}, as the child would, and parent {number} two"
                    f" different ones: {advice}"
                )


def _compare(first: nn.Module, model: nn.Module, example: Example, name: str) -> bool:
    """Compare a parent with the first one's modules; False where they cannot be run on its weights."""
    modules, parent = (_copied(network) for network in (first, model))
    state = {key: tensor for key, tensor in parent.state_dict().items() if _is_real(tensor)}
    same_width = all(tensor.shape == state[key].shape for key, tensor in modules.state_dict().items() if key in state)
    example_inputs = fit_example(example, parent)
    for inputs in (example_inputs, random_like(example_inputs, SCALE)):
        wanted = _run(lambda: run_network(parent, _cloned(inputs)))  # noqa: B023
        if not _agree(_run(lambda: run_network(parent, _cloned(inputs))), wanted):  # noqa: B023
            continue  # it does not run there, or is random: tracing and proving say that in their own words
        by_first = _run(lambda: _with_weights(modules, state, inputs))  # noqa: B023
        if isinstance(by_first, str):
            if not same_width:
                return False
            raise RecipeError(
                f"{name} is another network than parent 1, whose modules cannot be run with its weights ({by_first})"
            )
        if not _agree(by_first, wanted):
            if not same_width and _differ_by_shape(modules, parent, state, inputs):
                return False  # a head that keeps the number of its classes puts another number of them in other shapes
            raise RecipeError(
                f"{name} is another network than parent 1, though their tensors fit: with equal weights "
                f"{_first_difference(modules, parent, state, inputs)}; fuse networks that differ in their weights only"
            )
    return True


def _copied(network: nn.Module) -> nn.Module:
    """Copy a network to run it, in float32 at least."""
    narrow = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in network.state_dict().values())
    return evaluation_copy(network, torch.float32 if narrow else None)


def _is_real(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex())


def _cloned(inputs: Example) -> Example:
    """Copy inputs, which a network may write to."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)  # type: ignore[no-any-return]


def _run(forward: Callable[[], Any]) -> list[Tensor] | str:
    """Run a forward pass: its output tensors, or the first line of the exception."""
    try:
        with torch.no_grad():
            return tensors_in(forward())
    except Exception as error:  # whatever the user's network raises
        return first_line(error)


def _agree(outputs: list[Tensor] | str, wanted: list[Tensor] | str) -> bool:
    """Tell whether two forward passes had the same outputs."""
    return not isinstance(outputs, str) and not isinstance(wanted, str) and same_outputs(outputs, wanted)


def _with_weights(modules: nn.Module, state: dict[str, Tensor], inputs: Example) -> Any:
    """Run a network's modules with other weights."""
    return run_with(modules, state, _cloned(inputs), tied=False)


def _first_difference(modules: nn.Module, parent: nn.Module, state: dict[str, Tensor], inputs: Example) -> str:
    """Name the module whose output differs first, or the buffer or index that does."""
    wanted = _run(lambda: run_network(parent, _cloned(inputs)))
    for key, tensor in parent.named_buffers():
        if key in state:
            continue
        kind = (
            "which is no weight and cannot be averaged" if key in parent.state_dict() else "which no state dict holds"
        )
        by_first = _run(lambda: _with_weights(modules, {**state, key: tensor}, inputs))  # noqa: B023
        if _agree(by_first, wanted):
            return f"they compute by another buffer {key}, {kind}"
    ours = _recorded(modules, lambda: _with_weights(modules, state, inputs))
    of_parent = _recorded(parent, lambda: run_network(parent, _cloned(inputs)))
    for (name, kind, output), (other, its, expected) in zip(ours, of_parent, strict=False):
        if name != other or not same_outputs(output, expected):
            settings = next((text for text, counts in _settings(modules, parent, other) if counts), "")
            classes = its if kind == its else f"{kind}, {its}"
            return f"the output of {other or 'the network itself'} differs ({settings or classes})"
    return "the output differs"


def _differ_by_shape(modules: nn.Module, parent: nn.Module, state: dict[str, Tensor], inputs: Example) -> bool:
    """Tell whether what modules return is the same wherever it has the same shape, and has another one somewhere."""
    ours = _recorded(modules, lambda: _with_weights(modules, state, inputs))
    of_parent = _recorded(parent, lambda: run_network(parent, _cloned(inputs)))
    if [name for name, _, _ in ours] != [name for name, _, _ in of_parent]:
        return False
    pairs = [(output, expected) for (_, _, output), (_, _, expected) in zip(ours, of_parent, strict=True)]
    same = [[tensor.shape for tensor in one] == [tensor.shape for tensor in other] for one, other in pairs]
    return not all(same) and all(same_outputs(*pair) for pair, alike in zip(pairs, same, strict=True) if alike)


def _recorded(network: nn.Module, forward: Callable[[], Any]) -> list[tuple[str, str, list[Tensor]]]:
    """Record name, class and output tensors of every module call, in the order in which they end."""
    records: list[tuple[str, str, list[Tensor]]] = []

    def noting(name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [tensor.clone() for tensor in tensors_in(output)]
            records.append((name, type(module).__name__, tensors))

        return note

    handles = [module.register_forward_hook(noting(name)) for name, module in network.named_modules()]
    try:
        _run(forward)
    finally:
        for handle in handles:
            handle.remove()
    return records


def _other_settings(first: nn.Module, other: nn.Module) -> Iterator[tuple[str, bool]]:
    """Yield the differing settings of torch's own layers, see `_settings`."""
    for name, _ in unwrap(first).named_modules():
        yield from _settings(unwrap(first), unwrap(other), name)


def _of_one_kind(one: nn.Module, two: nn.Module) -> bool:
    """Tell whether two modules have one class; torch makes a new class for every module with a parametrization."""
    kinds = [type(module).__mro__[is_parametrized(module) :] for module in (one, two)]
    return is_parametrized(one) == is_parametrized(two) and kinds[0] == kinds[1]


def _settings(first: nn.Module, other: nn.Module, name: str) -> Iterator[tuple[str, bool]]:
    """Yield the differing settings of one of torch's own layers, but for sizes: `bn1.eps (1e-05, 0.1)`.

    With each, whether it counts in evaluation mode.
    """
    modules = dict(first.named_modules()), dict(other.named_modules())
    if name not in modules[0] or name not in modules[1]:
        return
    one, two = modules[0][name], modules[1][name]
    if not all(type(module).__module__.startswith("torch.nn.") for module in (one, two)):
        return
    if not _of_one_kind(one, two):
        yield f"{name} ({type(one).__name__}, {type(two).__name__})", True
        return
    for key, value in vars(one).items():
        its = vars(two).get(key)
        compared = not (key.startswith("_") or key in SIZES) and all(isinstance(each, PLAIN) for each in (value, its))
        if compared and value != its:
            yield f"{name}.{key} ({value}, {its})", key not in IN_TRAINING
