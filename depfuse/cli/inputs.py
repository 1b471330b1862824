"""From what the user names to networks and data that fit one another."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from depfuse.cli.building import built, class_scores
from depfuse.cli.channels import in_channels_of
from depfuse.cli.classes import (
    agreed_names,
    class_names,
    in_outputs,
    label_of,
    label_sets,
    of_card,
    of_known_classes,
    of_network,
)
from depfuse.cli.data_sets import load_named, with_judged_images
from depfuse.cli.named import read_named
from depfuse.cli.normalised import warn_of_normalisation
from depfuse.cli.options import DataOptions
from depfuse.cli.work import suit_threads_to
from depfuse.data import DataSet, Loader
from depfuse.data.draws import order_of_class
from depfuse.data.label_shares import read_classes
from depfuse.data.labels import labelled_first
from depfuse.data.parts import SPLIT_SEED
from depfuse.data.stream import Stream, batches_of
from depfuse.ensemble.label_sets import LabelSets
from depfuse.errors import DataError, DepfuseWarning, RecipeError
from depfuse.fusion.label_order import in_one_order
from depfuse.fusion.meaning import Meaning
from depfuse.fusion.parents import Parents
from depfuse.fusion.same_modules import check_alike
from depfuse.io.cards import Card
from depfuse.io.checkpoint import Checkpoint, read_checkpoints
from depfuse.io.into_network import load_into
from depfuse.io.label_table import read_table
from depfuse.io.recognising import recognised
from depfuse.models import build_network, check_input, with_classes
from depfuse.models.architecture import parse_architecture, with_arguments
from depfuse.models.registry import with_settings
from depfuse.recipe import Recipe
from depfuse.text import counted


@dataclass(frozen=True)
class Inputs:
    """Networks with their checkpoints and architectures, and the data that they take.

    `labels` are the labels of their outputs, where these differ; the data's labels are those of the child's outputs,
    and `names` what these are called, where that is known. `background` is the label of detectors' background, and
    `same_labels` how many the user says that each of them knows, where these are the same.
    """

    architectures: tuple[str, ...]
    checkpoints: tuple[Checkpoint, ...]
    models: tuple[nn.Module, ...]
    data: DataSet
    data_name: str
    device: torch.device
    labels: LabelSets | None = None
    names: tuple[str, ...] | None = None
    background: int | None = None
    same_labels: int | None = None

    def parents(self, template: nn.Module | None = None) -> Parents:
        """Collect what is known of the networks for a fusion; `template` has the child's shapes."""
        labels: Sequence[Sequence[int]] | None = None if self.labels is None else self.labels.sets
        if labels is None and self.same_labels is not None:
            labels = [range(self.same_labels)] * len(self.models)
        example = self.data.example(device=self.device)
        return Parents(self.models, labels, template, example, background=self.background)

    def test_loader(self, batch_size: int) -> Loader | Stream:
        """Load the test images, in order; many files are decoded as they are needed."""
        return batches_of(self.data.required_test, self.data.preprocessing, batch_size=batch_size, device=self.device)

    def with_fewer_test_images(self, count: int | None) -> Inputs:
        """Draw so many of the test images, in their order, and say so; all of them where None or there are no more."""
        test = self.data.required_test
        if count is not None and count > len(test):
            _say(f"--test {count:,} is more than the {counted(len(test), 'test image')}: all are taken")
        if count is None or count >= len(test):
            return self
        _say(f"the networks are evaluated on {count:,} of {len(test):,} test images, drawn by seed {SPLIT_SEED}")
        numbers = torch.sort(order_of_class(len(test), SPLIT_SEED, 0)[:count]).values
        return dataclasses.replace(self, data=dataclasses.replace(self.data, test=test.take(numbers)))

    def recipe(self, recipe: Recipe) -> Recipe:
        """Let a recipe that leaves the task open be of classes, where the data have classes of images."""
        return recipe.changed(task="classes") if recipe.task.name == "auto" and self.data.of_classes else recipe

    @property
    def texts_of_outputs(self) -> list[tuple[str, ...]]:
        """The texts that mean each output of the child: the number of its label, and its name."""
        example = self.data.example(device=self.device)
        numbers = None if self.labels is None else self.labels.joint
        if numbers is None:
            count = len(self.data.classes) or class_scores(self.models[0], example, "auto") or 0
            numbers = tuple(range(count))
        names = self.names or self.data.classes or tuple(map(str, numbers))
        return [tuple(dict.fromkeys((str(number), name))) for number, name in zip(numbers, names, strict=True)]

    def with_labels_of(self, table: Path, seed: int) -> tuple[Inputs, int]:
        """Take the labels of a table that `depfuse ask` wrote, and no others; return how many there are, too.

        See `labelled_first`.
        """
        numbers, labels = read_table(table, self.data.train, self.texts_of_outputs)
        return dataclasses.replace(self, data=labelled_first(self.data, numbers, labels, seed)), len(numbers)

    def require_labels(self, purpose: str) -> None:
        """Raise `DataError` where the training images have no classes, and `purpose` needs them."""
        if not self.data.classes or not self.data.train.of_classes:
            if self.data.train.labels is None:
                raise DataError(f"{self.data_name} has no labels, and {purpose} needs them: give data with labels")
            raise RecipeError(
                f"{purpose} is of classes of images, and these networks or labels are of none: leave it out"
            )


def read_inputs(
    paths: Sequence[Path],
    arch: str | Sequence[str] | None,
    options: DataOptions,
    device: torch.device,
    classes: Sequence[str] | None = None,
    background: str | None = None,
    *,
    fused: bool = False,
    trust: Sequence[Path] | None = None,
    key: Sequence[str] | None = None,
    judged: bool = False,
    task: str = "auto",
    seed: int = SPLIT_SEED,
) -> Inputs:
    """Read checkpoints and data, build the networks on the device, and check that all of it fits.

    What the user leaves out is taken from the checkpoints' cards. Architectures are one for all, or one per checkpoint.
    With `classes`, one text per checkpoint, each network has an output for each of its own labels; without, networks
    have as many outputs as their files, whatever classes the data have. Networks to be `fused`, and those compared on
    data without labels, may know different labels. Where they are `judged`, the data have test images: see
    `with_judged_images`. Code and data that a card names are used only where its file is one of those that the user
    trusts. Keys say where in files the weights are. Labels are classes of images where the outputs are a row of class
    scores, by their shape or as the name of the `task` says; else they stay as they are. The seed is of where squares
    and patches are cut out.
    """
    named = read_named(paths, arch, options, classes, trust, key)
    checkpoints = [
        recognised(own) if parse_architecture(text).source == "spandrel" else own
        for own, text in zip(read_checkpoints(paths, key), named.architectures, strict=True)
    ]
    architectures = tuple(
        with_settings(architecture, own.settings)
        for architecture, own in zip(named.architectures, checkpoints, strict=True)
    )
    if (
        fused
        and len(set(architectures)) > 1
        and all(parse_architecture(own).source == "spandrel" for own in architectures)
    ):
        # Enlargements that differ are told before photographs are read, which takes long.
        networks = [build_network(a, fitting=own.state) for a, own in zip(architectures, checkpoints, strict=True)]
        check_alike(networks, None)
    cards = [checkpoint.card for checkpoint in checkpoints]
    data = load_named(cards, options, named.data, named.architectures, seed)
    if judged:
        data = with_judged_images(data, fused=fused)
    if task not in ("auto", "none", "classes"):
        data = data.without_classes()
    labels, names = None, None
    if fused or not data.classes:
        labels, names, data = label_sets(cards, classes, data, paths)
    known = labels.sets[0] if labels else None if cards[0] is None else cards[0].classes
    data = in_channels_of(*built(architectures[0], checkpoints[0], known, len(data.classes), data.image_shape[0]), data)
    example = data.example()
    models, outputs = [], []
    for number, (architecture, checkpoint) in enumerate(zip(architectures, checkpoints, strict=True)):
        card = cards[number]
        known = labels.sets[number] if labels else None if card is None else card.classes
        model, checkpoint = built(architecture, checkpoint, known, len(data.classes), data.image_shape[0])
        checkpoints[number] = checkpoint
        load_into(model, checkpoint)
        check_input(model, example)
        outputs.append(class_scores(model, example, task))
        if known and outputs[-1] not in (None, len(known)):
            raise DataError(
                f"{checkpoint.path} has {outputs[-1]} outputs, but is said to know {counted(len(known), 'label')}"
            )
        models.append(model.to(device).eval())
    counts = [count for count in outputs if count is not None]
    if data.dense and len(counts) == len(outputs):
        _say(
            f"{data.name} has labels of pixels, and the networks give scores of images: its images are taken without"
            " labels"
        )
        data = data.without_labels()
    if data.classes and (len(counts) < len(outputs) or data.dense):
        data = data.without_classes()
    if labels is None:
        settled = (fused or not data.classes) and bool(classes or names)  # by `label_sets`
        said = [None if settled else of_network(card, data, text) for card, text in _each(cards, classes)]
        if judged and not fused and data.classes and data.labelled:
            stand_for = [own or of_card(card, data) for own, card in zip(said, cards, strict=True)]
            data, named_now = of_known_classes(data, paths, stand_for)
            said = said if named_now is None else [named_now] * len(said)
        data = in_outputs(data, counts, paths, said)
        names = names or agreed_names(cards) or class_names(data)
    empty = None if background is None else label_of(background, labels, names)
    if fused and labels is not None:
        ordered = in_one_order(Parents(models, labels.sets), example.to(device))
        if ordered.models is not models:
            empty = labels.joint.index(empty) if empty in labels.joint else empty
            models, labels = list(ordered.models), None
    suit_threads_to(models, example)
    warn_of_normalisation(paths, models, data, device)
    same = len(read_classes(classes[0])) if classes and labels is None else None
    return Inputs(
        architectures, tuple(checkpoints), tuple(models), data, named.data, device, labels, names, empty, same
    )


def say_all_are_used(recipe: Recipe, data: DataSet) -> None:
    """Warn where more calibration images are asked for than there are; the default is no such request."""
    asked, count = recipe.calibration.images, len(data.train)
    if asked > count and asked != type(recipe.calibration).model_fields["images"].default:
        _say(f"`calibration.images={asked}` is more than the {counted(count, 'training image')}: all are used")


def say_what_is_assumed(meaning: Meaning) -> None:
    """Warn where one number of each output may as well be a logit, and nothing tells."""
    if meaning.doubt:
        _say(meaning.doubt)


def _say(sentence: str) -> None:
    warnings.warn(sentence, DepfuseWarning, stacklevel=3)


def _each(cards: Sequence[Card | None], texts: Sequence[str] | None) -> list[tuple[Card | None, str | None]]:
    said: Sequence[str | None] = texts or [None] * len(cards)
    return list(zip(cards, said, strict=True))


def read_template(
    inputs: Inputs, width: float | None, child_arch: str | None, task: str = "auto"
) -> tuple[str | None, nn.Module | None]:
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
    count = class_scores(inputs.models[0], inputs.data.example(device=inputs.device), task)
    if inputs.labels is not None:
        count = len(inputs.labels.joint)
        architecture = with_classes(architecture, count)
    settings: dict[str, Any] = {} if count is None else {"classes": count}
    template = build_network(architecture, in_channels=inputs.data.image_shape[0], **settings).float()
    return architecture, template.to(inputs.device).eval()
