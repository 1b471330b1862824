"""What is measured of one cell: a network is made of some parents by a step, and judged."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depfuse import FusionResult, Recipe, fuse
from depfuse.data import Loader, calibration_loader
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import LimitWarning
from depfuse.evaluate import evaluate, evaluate_with_ensemble
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.fusion.ensemble_judge import EnsembleJudge
from depfuse.merge import average, effective_shares
from depfuse.networks.running import evaluating
from depfuse.renorm import renormalise
from depfuse.teach.distil import Distillation
from experiments.lib.baselines import BASELINES, Seen
from experiments.lib.cells import Cell
from experiments.lib.material import Joint, Material, ensemble, read_material, teachers
from experiments.lib.parents.families import Family
from experiments.lib.size import keep_worst_for, multiplications, parameters
from experiments.lib.steps import Baseline, Fusion, Step
from experiments.lib.untied import groups_of

PARTS = ("align", "choose", "merge", "refit", "renorm", "distil")
ALWAYS = (
    "accuracy", "loss", "held_out_accuracy", "parameters", "seconds", "cpu_seconds",
    *(f"seconds_{part}" for part in PARTS),
)  # fmt: skip
AGREEMENT = ("agreement",)
BESIDE = ("parents_accuracy", "parents_held_out", "ensemble_accuracy", "ensemble_held_out")
JUDGED = ("judged",)
FLOPS = ("flops",)
SECOND = ("second_share",)


@dataclass(frozen=True)
class Setup:
    """What every process must know.

    Attributes
    ----------
    parents, steps
        Those of the study, by name and as text.
    values
        What is measured: `ALWAYS`, and what of `AGREEMENT`, `BESIDE`, `JUDGED`, `FLOPS` and `SECOND` is asked for.
    files
        Data set -> where it lies.
    folder
        Where trained parents lie.
    device
        On which all is computed.
    """

    parents: Mapping[str, Family]
    steps: Mapping[str, Step]
    values: tuple[str, ...]
    files: Mapping[str, str]
    folder: Path
    device: str


def measure(setup: Setup, cell: Cell) -> dict[str, Any]:
    """Make the network of one cell and judge it; figures of the parents beside it are their means."""
    images, seed, limit = (int(cell[name]) for name in ("images", "seed", "test_limit"))
    step, device = setup.steps[cell["settings"]], torch.device(setup.device)
    parents = setup.parents[cell["set"]].parents(seed, step.parents, setup.folder, step.training)
    of = read_material(parents, setup.files[parents.data], device)
    foreign = step.foreign if isinstance(step, Fusion) else ""
    shown = of.of_foreign(setup.files[foreign]) if foreign else of
    seen = Seen(shown, drawn(shown, images, seed), images, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LimitWarning)  # noted in the row
        network, found = _fused(seen, step, setup.values) if isinstance(step, Fusion) else _compared(seen, step)
    scores = evaluate(network, of.test(limit))
    found |= {"accuracy": scores.accuracy, "loss": scores.loss}
    found["parameters"] = parameters(network) / parameters(of.inputs.models[0])
    if FLOPS[0] in setup.values:
        example = of.inputs.data.example(device=device)
        found["flops"] = multiplications(network, example) / multiplications(of.inputs.models[0], example)
    held_out = of.held_out(images, seed, limit)
    if held_out is not None:
        classes = _classes(network, held_out)
        found["held_out_accuracy"] = _share(classes, held_out.required_labels)
        if AGREEMENT[0] in setup.values:
            found["agreement"] = _share(classes, _classes_of_teachers(of, images, seed, limit))
    if BESIDE[0] in setup.values:
        found |= _beside(of, seed, limit)
    if device.type == "cuda":
        found["machine"] = torch.cuda.get_device_name(device)
    return found


def drawn(of: Material, count: int, seed: int) -> Loader | None:
    """So many calibration images, None of 0; the first ones are the same for every number."""
    if count == 0:
        return None
    inputs, batch_size = of.inputs, Recipe().calibration.batch_size
    return calibration_loader(inputs.data, count, batch_size=batch_size, device=inputs.device, seed=seed)


def _compared(seen: Seen, step: Baseline) -> tuple[nn.Module, dict[str, Any]]:
    seen.of.groups  # noqa: B018  found before the clock starts
    started, begun = time.perf_counter(), time.process_time()
    network = BASELINES[step.what](seen, **step.arguments)
    _wait_for(seen.of.inputs.device)
    took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - begun}
    made = step.images or step.what == "naive"  # parents and their ensemble are there without any work
    return network, took if made else dict.fromkeys(took, 0.0)


def _fused(seen: Seen, step: Fusion, values: tuple[str, ...]) -> tuple[nn.Module, dict[str, Any]]:
    of, inputs = seen.of, seen.of.inputs
    settings, note = dict(step.settings), []
    example = inputs.data.example(device=inputs.device)
    if step.times or step.flops:
        size, counted = step.times or step.flops, bool(step.flops)
        settings["keep_worst"] = keep_worst_for(
            size, inputs.models, of.groups, example, of.template, multiplications=counted
        )
        note.append(f"keep_worst {settings['keep_worst']:.4g}")
    if step.weigh:
        settings["weights"] = of.shares_by_counts
    recipe = Recipe.create(**{"refit": "none", **settings}, calibration=seen.images, seed=seen.seed)
    calibration = drawn(of, step.match, seen.seed) if step.match else seen.calibration
    # One head, and another width, is another network.
    another = recipe.teach.labelled or recipe.merge.width_of
    groups = None if another else groups_of(of.groups, inputs.models[0], step.tied)
    begun: dict[str, float] = {}

    def begin(part: str) -> None:
        begun[part] = time.process_time()

    begin("fuse")
    started = time.perf_counter()
    result = fuse(
        replace(inputs.parents(of.template), example=example, groups=groups),
        recipe,
        calibration,
        training=Distillation(of.to_train_on(seen.images, seen.seed, step.unlabelled)) if recipe.trains else None,
        progress=begin,
    )
    child = _renormalised(result, step.renorm) if step.renorm else result.child
    if step.match or step.reset:
        renormalise(child, "reset", drawn(of, step.reset or seen.images, seen.seed))
    _wait_for(inputs.device)
    found: dict[str, Any] = {
        "seconds": time.perf_counter() - started - result.seconds["groups"],
        "cpu_seconds": time.process_time() - begun["fuse"] - (begun["align"] - begun["groups"]),
        "note": "; ".join([*note, *result.not_converged]),
    }
    if JUDGED[0] in values:
        assert calibration is not None
        split = CalibrationSplit.for_matchings(calibration)
        judge = EnsembleJudge(Ensemble(inputs.models, ()), of.groups, recipe.renorm.name, split)
        found["judged"] = judge(1, result.couplings[1])
    if SECOND[0] in values:
        found["second_share"] = effective_shares(
            result.averaged, result.groups, result.couplings, recipe.shares(len(result.averaged))
        )[1]
    return child, found | {f"seconds_{part}": result.seconds.get(part, 0.0) for part in PARTS}


def _renormalised(result: FusionResult, method: str) -> nn.Module:
    """The child of the same matching, renormalised in another way."""
    augmented = method == "augmented"
    recipe = result.recipe.changed(renorm="reset" if augmented else method, augment_statistics=augmented)
    shares = recipe.shares(len(result.averaged))
    child = average(result.averaged, result.groups, result.couplings, shares)
    replace(result.builder, recipe=recipe).renormalise_as_asked(child, result.couplings, shares)
    return child


@lru_cache(maxsize=4)
def _classes_of_teachers(of: Material, images: int, seed: int, limit: int) -> Tensor:
    """The classes (N,) that the parents' ensemble predicts for the held-out images, as it teaches a refitted child."""
    calibration, held_out = drawn(of, images, seed), of.held_out(images, seed, limit)
    assert held_out is not None
    if calibration is None:
        return _classes(ensemble(of), held_out)
    taught = teachers(of, calibration)
    return _classes(Joint(taught.models, of.shares, taught.labels), held_out)


@lru_cache(maxsize=1)
def _beside(of: Material, seed: int, limit: int) -> dict[str, float]:
    """Mean accuracy of the parents and that of their ensemble, on test and on held-out images."""
    found = {}
    for what, loader in (("accuracy", of.test(limit)), ("held_out", of.held_out(0, seed, limit))):
        assert loader is not None
        own, together = evaluate_with_ensemble(of.inputs.models, loader)
        found[f"parents_{what}"] = sum(scores.accuracy for scores in own) / len(own)
        found[f"ensemble_{what}"] = together.accuracy
    return found


def _classes(network: nn.Module, loader: Loader) -> Tensor:
    with torch.inference_mode(), evaluating(network):
        return torch.cat([network(images).argmax(1) for images, _ in loader])


def _share(first: Tensor, second: Tensor) -> float:
    return float((first == second).double().mean())


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
