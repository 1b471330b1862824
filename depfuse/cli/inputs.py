"""From what the user names to networks and data that fit one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from depfuse.cli.named import agreed, read_named
from depfuse.cli.normalised import warn_of_normalisation
from depfuse.cli.options import DataOptions
from depfuse.data import DataSet, Loader, Preprocessing, load_data, parse_labels
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import ArchitectureError, DataError, RecipeError
from depfuse.io.cards import Card
from depfuse.io.checkpoint import Checkpoint, read_checkpoints
from depfuse.io.loading import load_into
from depfuse.models import build_network, check_input, with_classes
from depfuse.models.architecture import with_arguments
from depfuse.models.origin import FromFile
from depfuse.networks.running import evaluating


@dataclass(frozen=True)
class Inputs:
    """Networks with their checkpoints and architectures, and the data that they take."""

    architectures: tuple[str, ...]
    checkpoints: tuple[Checkpoint, ...]
    models: tuple[nn.Module, ...]
    data: DataSet
    data_name: str
    device: torch.device
    labels: LabelSets | None = None

    def test_loader(self, batch_size: int) -> Loader:
        """Load the test images, in order."""
        return Loader(self.data.test, self.data.preprocessing, batch_size=batch_size, device=self.device)


def read_inputs(
    paths: Sequence[Path],
    arch: str | Sequence[str] | None,
    options: DataOptions,
    device: torch.device,
    classes: Sequence[str] | None = None,
    *,
    fused: bool = False,
    trust: Sequence[Path] | None = None,
    key: Sequence[str] | None = None,
) -> Inputs:
    """Read checkpoints and data, build the networks on the device, and check that all of it fits.

    What the user leaves out is taken from the checkpoints' cards. Architectures are one for all, or one per checkpoint.
    With `classes`, one text per checkpoint, each network has an output for each of its own labels; without, for each of
    the data's. Networks to be `fused` may be said to know fewer. Code and data that a card names are used only
    where its file is one of those that the user trusts. Keys say where in the files the weights are.
    """
    named = read_named(paths, arch, options, classes, trust)
    architectures = named.architectures
    checkpoints = read_checkpoints(paths, key)
    data = load_named([checkpoint.card for checkpoint in checkpoints], options, named.data)
    example = data.example()
    models = []
    labels = _labels(checkpoints, classes, data)
    for number, (architecture, checkpoint) in enumerate(zip(architectures, checkpoints, strict=True)):
        known = labels.sets[number] if labels else (checkpoint.card and checkpoint.card.classes) or data.classes
        model = _built(architecture, checkpoint, len(known), data.image_shape[0])
        checkpoint = checkpoints[number] = checkpoint.fitted_to(model.state_dict())
        if fused and not labels:
            _check_head(model, checkpoint, len(known))
        load_into(model, checkpoint)
        check_input(model, example, classes=None if fused else len(known) if labels else len(data.classes))
        if fused and not labels:
            _check_knows(_outputs(model, example), checkpoint, len(data.classes))
        if labels or (checkpoint.card and checkpoint.card.classes and not classes):
            _check_outputs(model, example, checkpoint, len(known))
        models.append(model.to(device).eval())
    warn_of_normalisation(paths, models, data, device)
    return Inputs(architectures, tuple(checkpoints), tuple(models), data, named.data, device, labels)


def _built(architecture: str, checkpoint: Checkpoint, classes: int, channels: int) -> nn.Module:
    """Build the network for a checkpoint; errors in its card's architecture name the file."""
    try:
        return build_network(architecture, fitting=checkpoint.state, classes=classes, in_channels=channels)
    except ArchitectureError as error:
        if isinstance(architecture, FromFile):
            raise ArchitectureError(f"{checkpoint.path}: {error}") from None
        raise


def _check_outputs(model: nn.Module, example: torch.Tensor, checkpoint: Checkpoint, known: int) -> None:
    outputs = _outputs(model, example)
    if outputs != known:
        raise DataError(f"{checkpoint.path} has {outputs} outputs, but is said to know {known} classes")


def _check_head(model: nn.Module, checkpoint: Checkpoint, classes: int) -> None:
    """Report a checkpoint that fits its network but for the number of labels, which only the user can know."""
    own = {key: tensor.shape for key, tensor in model.state_dict().items()}
    wrong = [key for key, tensor in checkpoint.state.items() if key in own and own[key] != tensor.shape]
    found = [checkpoint.state[key].shape for key in wrong]
    alike = [own[key][:1] == (classes,) and own[key][1:] == shape[1:] for key, shape in zip(wrong, found, strict=True)]
    if wrong and all(alike) and len({shape[0] for shape in found}) == 1:
        _check_knows(found[0][0], checkpoint, classes)


def _check_knows(outputs: int, checkpoint: Checkpoint, classes: int) -> None:
    if outputs < classes:
        raise DataError(
            f"{checkpoint.path} has {outputs} outputs, but the labels name {classes} classes, so that labels from "
            f"{outputs} on are out of range: say which labels each parent knows with --classes, once per parent"
        )


def _outputs(model: nn.Module, example: torch.Tensor) -> int:
    with torch.no_grad(), evaluating(model):
        outputs = model(example)
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        raise DataError(f"{type(model).__name__} does not give one row of class scores per image")
    return outputs.shape[1]


def _labels(checkpoints: Sequence[Checkpoint], classes: Sequence[str] | None, data: DataSet) -> LabelSets | None:
    """Collect the labels that each checkpoint knows, from the user or else the cards; None where all know all."""
    everything = tuple(range(len(data.classes)))
    if classes:
        sets = LabelSets.create([tuple(parse_labels(text)) for text in classes])
    else:
        said = [checkpoint.card.classes if checkpoint.card else None for checkpoint in checkpoints]
        sets = LabelSets.create([everything if known is None else known for known in said])
        if len(set(sets.sets)) == 1:
            return None
    if unknown := sorted(set(sets.joint) - set(everything)):
        raise DataError(f"the data have labels 0 to {len(everything) - 1}, but a parent is said to know {unknown[0]}")
    if missing := sorted(set(everything) - set(sets.joint)):
        raise DataError(f"no parent knows label {missing[0]} of the data: give data of the labels that they know")
    return None if sets.same else sets


def load_named(cards: Sequence[Card | None], options: DataOptions, name: str) -> DataSet:
    """Load a data set, preprocessed as the user says, else as the cards say, else in its own way."""
    mean, std = options.means(), options.stds()
    used = Preprocessing()
    if mean is None or std is None:
        used = agreed(cards, "preprocessing") or used
    return load_data(
        name,
        root=options.data_root,
        mean=mean or used.mean,
        std=std or used.std,
        size=used.size,
        download=options.data is not None,
    )


def read_template(inputs: Inputs, width: float | None, child_arch: str | None) -> tuple[str | None, nn.Module | None]:
    """Architecture and network that the child is to be like; None where it is like one of its parents.

    It is like none of them where the user asks for a width of its own, or the parents know different labels.
    """
    if width is None and child_arch is None and inputs.labels is None:
        return None, None
    if inputs.labels is not None and (width is not None or child_arch is not None):
        raise RecipeError("parents that know different labels keep their width: leave out --width and --child-arch")
    first = inputs.architectures[0]
    architecture = first if width is None else with_arguments(first, width=int(width) if width.is_integer() else width)
    architecture = architecture if child_arch is None else child_arch
    card = inputs.checkpoints[0].card
    count = len((card and card.classes) or inputs.data.classes)
    if inputs.labels is not None:
        count = len(inputs.labels.joint)
        architecture = with_classes(architecture, count)
    template = build_network(architecture, classes=count, in_channels=inputs.data.image_shape[0])
    return architecture, template.to(inputs.device).eval()
