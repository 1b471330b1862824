"""`depfuse train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depfuse.cli.console import Screen
from depfuse.cli.help import FURTHER, Further
from depfuse.cli.importing import importing
from depfuse.cli.named import read_named
from depfuse.cli.options import Architecture, DataOptions, RunOptions
from depfuse.cli.spread import spread
from depfuse.data.label_shares import check_share, parse_labels
from depfuse.errors import DataError
from depfuse.io.cards import Card
from depfuse.io.output_files import check_outputs, check_weights_name
from depfuse.models.architecture import check_built_in, parse_architecture
from depfuse.train.recipe import SAVE_SECONDS, TrainRecipe

if TYPE_CHECKING:
    from depfuse.data.tensors import DataSet


@spread
def train(
    arch: Architecture,
    data: DataOptions,
    settings: Annotated[
        dict[str, Any],
        TrainRecipe,
        "flip",
        "translate",
        Further(
            *("momentum", "weight_decay", "label_smoothing", "warmup", "schedule", "flip", "translate", "cutout"),
            *("precision", "channels_last", "compile"),
        ),
    ],
    options: RunOptions,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the network is written (.safetensors).")],
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="LABELS",
            help="Train on these labels only, or on a share of each: 0-4, or 0-4:0.9,5-9:0.1.",
        ),
    ] = None,
    half: Annotated[
        int | None,
        typer.Option("--half", min=0, max=1, help="Train on one of two disjoint halves of every class."),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option("--share", metavar="K/N", help="Train on part K (from 0) of N disjoint parts of the images."),
    ] = None,
    dirichlet: Annotated[
        float | None,
        typer.Option("--dirichlet", help="Let the classes' shares differ between the parts; the smaller, the more."),
    ] = None,
    split_seed: Annotated[
        int,
        typer.Option(
            "--split-seed", min=0, help="Seed of which images a half, part or share holds.", rich_help_panel=FURTHER
        ),
    ] = 0,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Keep the training's state beside --out, and go on from it."),
    ] = True,
    save_seconds: Annotated[
        float,
        typer.Option(
            "--save-seconds",
            min=0.0,
            help="Least time between two savings of that state, at the end of an epoch.",
            rich_help_panel=FURTHER,
        ),
    ] = SAVE_SECONDS,
) -> None:
    """Train a network from random weights and write it with its card."""
    TrainRecipe.create(**settings)
    check_weights_name("--out", out)
    check_outputs({"--out": out})
    part = _part(half, share, dirichlet)
    if part is not None:
        check_share(*part, dirichlet)
    shares = None if labels is None else parse_labels(labels)
    check_built_in(parse_architecture(arch))
    named = read_named([], None, data)
    # What follows needs torch, for which no mistake above has to wait.
    with importing():
        import torch

        from depfuse.cli.data_sets import load_named
        from depfuse.cli.work import suit_threads_to
        from depfuse.data.labels import select_labels, select_share
        from depfuse.data.parts import with_test_images
        from depfuse.distributed.device import resolve_device
        from depfuse.io.checkpoint import write_checkpoint
        from depfuse.models import build_network
        from depfuse.train import train as train_network

    device = resolve_device(options.device)
    screen = Screen(options.quiet)
    with screen.working() as work:
        work.step("reading data")
        images = with_test_images(load_named([], data, named.data))
        if part is not None:
            images = select_share(images, part[0], part[1], alpha=dirichlet, seed=split_seed)
        kept = list(range(len(images.classes)))
        if shares is not None:
            images, kept = select_labels(images, shares, seed=split_seed)
        recipe = TrainRecipe.suited_to(images, **settings)
        torch.manual_seed(recipe.seed)
        model = build_network(arch, classes=len(images.classes), in_channels=images.image_shape[0]).float()
        suit_threads_to([model.to(device)], images.example())
        state = out.with_name(f"{out.name}.training")
        metrics = train_network(
            model, images, recipe, device=device, resume_path=state if resume else None, save_seconds=save_seconds
        )
    split = {"labels": labels, "half": half, "share": share, "dirichlet": dirichlet}
    write_checkpoint(out, model.state_dict(), _card(arch, named.data, images, kept, recipe, split, split_seed, metrics))
    if resume:
        state.unlink(missing_ok=True)
    screen.say(
        f"{out}: {100 * metrics['accuracy']:.2f} % of the test images, loss {metrics['loss']:.4f},"
        f" {metrics['seconds']:.0f} s of training"
    )


def _part(half: int | None, share: str | None, dirichlet: float | None) -> tuple[int, int] | None:
    """Return (part, parts) of the training images, None for all of them."""
    if half is not None and share is not None:
        raise DataError("--half and --share both say which images to train on: give one of them")
    if dirichlet is not None and share is None:
        raise DataError("--dirichlet needs --share K/N, which says how many parts there are")
    if half is not None:
        return half, 2
    if share is None:
        return None
    part, _, parts = share.partition("/")
    if not (part.isdecimal() and parts.isdecimal()):
        raise DataError(f"--share {share!r} must be like 0/4, the first of four parts")
    return int(part), int(parts)


def _card(
    arch: str,
    name: str,
    images: DataSet,
    kept: list[int],
    recipe: TrainRecipe,
    split: dict[str, Any],
    split_seed: int,
    metrics: dict[str, float],
) -> Card:
    chosen = {key: value for key, value in split.items() if value is not None}
    return Card(
        architecture=arch,
        data=name,
        preprocessing=images.preprocessing,
        classes=tuple(kept),
        names=None if images.classes == tuple(map(str, kept)) else images.classes,
        recipe={**recipe.model_dump(mode="json"), **chosen},
        seeds={"train": recipe.seed, "split": split_seed},
        metrics=metrics,
    )
