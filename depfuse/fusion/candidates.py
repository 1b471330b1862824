"""Find the best single network: of several candidates, the one that agrees best with the ensemble.

Where parents know different things, merging them pays; where they know the same, every step from one of them towards
the average loses, and the best single network is a parent whose head, or last stage, has learned from the ensemble.
Held-out images decide which.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from depfuse.data.augment import mix
from depfuse.data.augmentation import Augmentation
from depfuse.data.inputs import take_samples
from depfuse.data.loader import Loader
from depfuse.ensemble.distance import at_best_scale, mean_or_infinite
from depfuse.ensemble.ensemble import Ensemble
from depfuse.errors import ArchitectureError, RecipeError
from depfuse.fusion.calibration import CalibrationSplit
from depfuse.fusion.child_builder import ChildBuilder
from depfuse.fusion.choose_shares import shares_by_part
from depfuse.groups.partition import parts_by_stage
from depfuse.merge import Shares
from depfuse.networks.forward import Example, in_layout, run_network
from depfuse.networks.memory_format import choose_layout
from depfuse.networks.running import evaluating
from depfuse.networks.stopwatch import Stopwatch, device_of
from depfuse.progress import part
from depfuse.recipe.goals import Best
from depfuse.recipe.refits import Ridge, Targets
from depfuse.refit import Session, refit_heads
from depfuse.refit.second_order.gauss_newton import gauss_newton_step
from depfuse.renorm import reset_keeping_function
from depfuse.teach.heads import head_of

VIEWS = 4  # augmented views of each image that candidates are judged by
FARTHER = 2  # times the usual translation, so that views differ from those of the refit
MIXED_AT_ONCE = 250  # images that are mixed with each other
LEAST_IMAGES = 8  # of which a quarter is held out
# Candidates are fitted to so many images; the best merged one is made again from all.
COMPARED_IMAGES = 500
SHARES_IMAGES = 400  # to choose shares by


@dataclass(frozen=True, eq=False)
class Candidate:
    """One network of the family.

    Attributes
    ----------
    name
        How it was made.
    network
        The network, in eval mode.
    disagreement
        Cross-entropy (nats) of its class probabilities for held-out images, shifted far, under the mean of the parents'
        for the same images as they are; without labels, at the best scale of its scores. Mean squared error where the
        outputs are no class scores.
    seconds
        Wall-clock seconds of making it.
    scale
        Factor of its class scores; no decision depends on it.
    losses
        The disagreement of each image (N,), over its views.
    instead_of
        The name of the candidate that it was made from and replaces: it is nearer to the ensemble on mixed images.
    """

    name: str
    network: nn.Module
    disagreement: float
    seconds: float
    scale: float
    losses: Tensor
    instead_of: str | None = None


@dataclass(frozen=True, eq=False)
class Family:
    """Make the candidates of a fusion.

    Attributes
    ----------
    builder
        What averages are made from.
    alone
        The parents as candidates; none where they do not know all labels.
    """

    builder: ChildBuilder
    alone: Sequence[nn.Module]

    def find(self) -> list[Candidate]:
        """Make all candidates, the simplest first (see `best_of`).

        Each parent as it is (where all know the same labels) and with its head refitted to the ensemble; the best of
        these up to a stage and the average of all from there on, from the last stage backwards as long as that helps;
        the average of all; the average with shares chosen by stage. Averages are refitted layer by layer. If the best
        is an average, it is made again from more images and with the recipe's steps of all layers together, and the
        best of all takes a Gauss-Newton step towards the ensemble. If it is a parent, its weights move half the way to
        those after the recipe's steps (`_half_way`).

        Raises
        ------
        RecipeError
            There are fewer than eight images.
        """
        if self._calibration.count < LEAST_IMAGES:
            raise RecipeError(
                f"goal best needs at least {LEAST_IMAGES} calibration images, not {self._calibration.count}: give 2000"
            )
        images, recipe = CalibrationSplit.for_candidates(self._calibration), self.builder.recipe
        seen = images.statistics
        few = seen.first(COMPARED_IMAGES)
        judge = Judge(self.builder.ensemble, images.judging, recipe.seed)
        shares = Shares(recipe.shares(len(self._models)))
        candidates: list[Candidate] = []
        watch = Stopwatch(device_of(self._models[0]))

        def judged(name: str, network: nn.Module, seconds: float) -> float:
            """Add a candidate; return its disagreement."""
            losses, scale = judge(network)
            candidates.append(Candidate(name, network, mean_or_infinite(losses), seconds, scale, losses))
            return candidates[-1].disagreement

        def add(name: str, make: Callable[[], nn.Module]) -> float:
            """Make a candidate and add it; return its disagreement, infinity where it cannot be made."""
            started = watch.now()
            try:
                with part(name):
                    network = make()
            except (ArchitectureError, RecipeError):  # the network cannot be decomposed
                return float("inf")
            return judged(name, network, watch.now() - started)

        bases: dict[str, int] = {}
        started = watch.now()
        heads = self._heads(seen)
        spent = (watch.now() - started) / len(self._models)
        for number in range(len(self._models)):
            name = f"parent {number + 1}"
            bases |= {name: number, f"{name}, head refitted": number}
            if self.alone:
                add(name, partial(_copied, self.alone[number]))
            if heads:
                judged(f"{name}, head refitted", heads[number], spent)
        merged = {"average": shares}
        least = min((candidate.disagreement for candidate in candidates), default=float("inf"))
        base = bases[best_of(candidates).name] if candidates else 0
        for name, from_stage in self._merged_from(base, shares):
            merged[name] = from_stage
            disagreement = add(name, partial(self._refitted, from_stage, few, 0))
            if disagreement > least:
                break
            least = disagreement
        add("average", partial(self._refitted, shares, few, 0))
        name = "average, shares by stage"
        by_stage = self._by_stage(seen)
        if by_stage not in merged.values() and not by_stage.of_one_parent:
            merged[name] = by_stage
            add(name, partial(self._refitted, by_stage, few, 0))
        best = best_of(candidates)
        if best.name in merged:
            whole = partial(self._refitted, merged[best.name], seen, self._best.steps)
            add(f"{best.name}, all images and layers", whole)
        best = best_of(candidates)
        half_way = partial(self._half_way, best.network, seen)
        if best.name in bases and add(f"{best.name}, all layers half-way", half_way) < float("inf"):
            if judge.nearer(candidates[-1].network, best.network):
                # It was trained on mixed images, which say less about its confidence than about its origin's.
                candidates[-1] = replace(candidates[-1], instead_of=best.name, scale=best.scale)
        else:
            add(f"{best.name}, polished", partial(self._polished, best.network, seen))
        return [judge.rescaled(candidate) for candidate in candidates]

    @property
    def _augmentation(self) -> Augmentation:
        return self._calibration.suited_augmentation

    @property
    def _models(self) -> Sequence[nn.Module]:
        return self.builder.networks

    @property
    def _calibration(self) -> Loader:
        assert self.builder.calibration is not None
        return self.builder.calibration

    @property
    def _example(self) -> Example:
        assert self.builder.example is not None
        return self.builder.example

    def _heads(self, images: Loader) -> list[nn.Module]:
        """Refit the parents' heads; none where the network cannot be decomposed."""
        ensemble = self.builder.ensemble
        try:
            return refit_heads(
                self._models, ensemble.shares, images, labels=ensemble.labels, template=self.builder.template
            )
        except (ArchitectureError, RecipeError):
            return []

    def _merged_from(self, base: int, shares: Shares) -> list[tuple[str, Shares]]:
        """List names and shares of one parent up to a stage and all parents from there on, the last stage first."""
        part_of = parts_by_stage(self._models[0], self._example)
        stages = list(dict.fromkeys(part_of.values()))
        alone = tuple(float(number == base) for number in range(len(self._models)))
        merged = []
        for depth in range(len(stages) - 1, 0, -1):
            by_stage = Shares.of_parts(shares.network, part_of)
            for stage in stages[:depth]:
                by_stage = by_stage.having(stage, alone)
            merged.append((f"parent {base + 1}, merged from {stages[depth]} on", by_stage))
        return merged

    @property
    def _best(self) -> Best:
        goal = self.builder.recipe.goal
        assert isinstance(goal, Best)
        return goal

    def _by_stage(self, images: Loader) -> Shares:
        recipe = self.builder.recipe
        few = images if recipe.teach.labelled else images.first(SHARES_IMAGES)
        return shares_by_part(self.builder, "stage", few).shares

    def _polished(self, network: nn.Module, images: Loader) -> nn.Module:
        """Take a Gauss-Newton step from a network, then set its BatchNorm statistics to those of the images."""
        network = _copied(network)
        recipe = self.builder.recipe
        augment = self._augmentation if self._best.augment else None
        ensemble = self.builder.ensemble
        step = gauss_newton_step(network, ensemble, images, augment=augment, seed=recipe.seed, task=ensemble.task)
        if step.layers is not None:
            reset_keeping_function(network, images)
        return network

    def _half_way(self, network: nn.Module, images: Loader) -> nn.Module:
        """Average a network with itself after natural-gradient steps on mixed images.

        A network that is as good as its parents has little to gain, and the gradient of few images is noisy: half the
        way has most of the gain and a quarter of the variance (weights averaged after fine-tuning, Wortsman et al.
        2022, section 3). Images are mixed but not shifted, and the parents have memorised none of the mixtures.
        """
        trained, half = _copied(network), _copied(network)
        recipe = self.builder.recipe
        session = Session.towards(
            trained, self.builder.ensemble, images, seed=recipe.seed, task=self.builder.ensemble.task
        )
        session.second_pass(self._best.steps, Augmentation(flip=self._augmentation.flip), mixed=True)
        with torch.no_grad():
            for own, other in zip(half.state_dict().values(), trained.state_dict().values(), strict=True):
                if own.is_floating_point() or own.is_complex():
                    own.lerp_(other, 0.5)
        return half

    def _refitted(self, shares: Shares, images: Loader, steps: int) -> nn.Module:
        network = self.builder.average(shares)
        # A stream has one mixture, which shares that differ by stage would have to agree on.
        targets: Targets = "matched" if shares.parts else self._best.targets
        settings = Ridge(targets=targets, steps=steps, augment=self._best.augment)
        self.builder.refit(network, shares, images, settings)
        return network


class Judge:
    """Measure the distance of candidates from the parents' ensemble on held-out images.

    The ensemble sees each image as it is, a candidate several views of it, flipped and shifted twice as far as in
    training: all networks predict memorised images alike, and those that generalise predict shifted ones alike as well.
    Losses are at the one of `SCALES`, a factor of all class scores, with which they are least.

    The candidate's own scale is set on images mixed with each other, since networks are overconfident on memorised
    images and have memorised no mixtures: it is the scale with which the candidate is nearest to the mean of the
    parents' probabilities there (temperature scaling, Guo et al. 2017, without labels).
    """

    def __init__(self, ensemble: Ensemble, images: Loader, seed: int) -> None:
        self._ensemble = ensemble
        near = images.suited_augmentation
        far = replace(near, translate=FARTHER * near.translate)
        images = images.in_batches(MIXED_AT_ONCE)
        generator = torch.Generator().manual_seed(seed)
        self._wanted = self._of_ensemble([inputs for inputs, _ in images])
        self._views = [inputs for view in range(VIEWS) for inputs, _ in images.augmented(far, seed + view)]
        self._mixed = [mix(inputs, generator) for inputs, _ in images.augmented(near, seed)]
        self._between = self._of_ensemble(self._mixed)

    def __call__(self, network: nn.Module) -> tuple[Tensor, float]:
        """Compute each image's disagreement (N,), nats, and the network's scale; 1 without a linear head."""
        views, mixed, task = _logits(network, self._views), _logits(network, self._mixed), self._ensemble.task
        losses, scale = at_best_scale(views, torch.cat([self._wanted] * VIEWS), task=task)[0], 1.0
        with suppress(RecipeError):
            head_of(network, take_samples(self._views[0], slice(0, 1)))
            scale = at_best_scale(mixed, self._between, task=task)[1]
        return losses.reshape(VIEWS, -1).mean(0), scale

    def nearer(self, network: nn.Module, other: nn.Module) -> bool:
        """Tell whether a network is nearer to the ensemble than another one on the mixed images, beyond chance.

        It is for two networks of which one was made from the other: their confidence counts here.
        """
        logits = [_logits(model, self._mixed) for model in (network, other)]
        losses, others = (self._ensemble.task_of(outputs).losses(outputs, self._between) for outputs in logits)
        return beyond_chance(others - losses)

    def _of_ensemble(self, batches: Sequence[Tensor]) -> Tensor:
        """Compute the ensemble's outputs (N, ...) for batches."""
        return self._ensemble.combine([_logits(model, batches) for model in self._ensemble.networks])

    def rescaled(self, candidate: Candidate) -> Candidate:
        """Multiply a candidate's head by its scale."""
        if candidate.scale != 1.0:
            head = head_of(candidate.network, take_samples(self._views[0], slice(0, 1)))
            with torch.no_grad():
                head.weight.mul_(candidate.scale)
                assert head.bias is not None, "a head has one"
                head.bias.mul_(candidate.scale)
        return candidate


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """Select the first candidate that is within one standard error of the best, or the one that replaces it.

    Candidates come with the simplest first, and a simpler one is preferred where chance explains the difference (the
    rule of one standard error, Breiman et al. 1984, section 3.4.3, on the differences image by image).
    """
    first = [candidate for candidate in candidates if candidate.instead_of is None]
    least = min(first, key=lambda candidate: candidate.disagreement)
    best = next(
        candidate for candidate in first if candidate is least or not beyond_chance(candidate.losses - least.losses)
    )
    return next((candidate for candidate in candidates if candidate.instead_of == best.name), best)


def beyond_chance(differences: Tensor) -> bool:
    """Tell whether the mean of some differences (N,) is above zero by more than one standard error."""
    return float(differences.mean()) > float(differences.std()) / math.sqrt(len(differences))


def _logits(network: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    with torch.no_grad(), evaluating(network):
        layout = choose_layout(network, take_samples(batches[0], slice(0, 1)))[0]
        return torch.cat([run_network(network, in_layout(inputs, layout)).float() for inputs in batches])


def _copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval()
