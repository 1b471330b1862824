"""Operations of any network, by `torch.export`."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind

from depfuse.networks.forward import INNER, Example, as_module
from depfuse.networks.isolation import without_warnings
from depfuse.refit.program.functional import functional
from depfuse.refit.program.operations import Operations


def exported_operations(network: nn.Module, images: Example) -> Operations:
    """Find the operations of a network in eval mode on a batch; raises whatever `torch.export` does."""
    # A tensor is given to the network itself; any other batch is one argument of what calls it.
    single = isinstance(images, Tensor)
    exportable, argument = (network, images) if single else as_module(network, images)
    with without_warnings(), _without_logs(), redirect_stderr(io.StringIO()), torch.no_grad():
        exported = functional(torch.export.export(exportable, (argument,), strict=False))
    signature = exported.graph_signature
    keys = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    if not single:
        keys = {name: key.removeprefix(INNER) for name, key in keys.items()}
    constants = {name: exported.constants[key] for name, key in signature.inputs_to_lifted_tensor_constants.items()}
    # Buffers outside the state dict are the same in every network.
    held = network.state_dict().keys()
    buffers = dict(network.named_buffers(remove_duplicate=False))
    for name, key in list(keys.items()):
        if key not in held:
            inner = key if single else f"{INNER}{key}"
            constants[name] = exported.constants[inner] if inner in exported.constants else buffers[key]
            del keys[name]
    graph = exported.graph_module.graph
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    # What is no tensor, such as a flag of a batch, is part of the program.
    inputs = [placeholders[name] for name in signature.user_inputs if name in placeholders]
    inputs = [node for node in inputs if isinstance(node.meta.get("val"), Tensor)]
    first = next(n for n, spec in enumerate(signature.output_specs) if spec.kind == OutputKind.USER_OUTPUT)
    output = next(iter(reversed(graph.nodes))).args[0][first]
    return Operations(graph, keys, constants, exported.graph_module, inputs, output)


@contextmanager
def _without_logs() -> Iterator[None]:
    """Silence the logs of tracing, which print pages about what it could not follow; its exception is one sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
