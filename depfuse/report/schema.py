"""The fields of `report.json`, the same for the command that writes it and for those that read it back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from depfuse.evaluate import Agreement, PathPoint, Scores, barrier, standard_error
from depfuse.fusion.advice import Advice
from depfuse.io.stored import Stored
from depfuse.tasks.scores import ACCURACY, AGREEMENT, CALIBRATION, Measure

if TYPE_CHECKING:  # a report is read without torch
    from depfuse.fusion.candidates import Candidate
    from depfuse.fusion.choose_shares import ChosenShares
    from depfuse.fusion.step_acceptance import Step


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# JSON knows no NaN and no infinity; a network whose loss is neither finite has none to show.
Loss = Annotated[float | None, BeforeValidator(_finite)]


class ScoreValues(Stored):
    """Scores of a network: of classes accuracy and calibration error as fractions, mean cross-entropy in nats.

    Of other tasks `score` by `measure`, and values by `further` measures. Where the images have no labels: `agreement`
    with the ensemble's class and with each member's, mean `confidence`, fractions, and `ensemble_loss`, the mean
    cross-entropy under the ensemble's probabilities, in nats; of outputs that are no classes, `agreement` is their
    score by `measure` with the ensemble's as targets, and `ensemble_loss` their mean loss. `standard_error` is that of
    the score over the images, where each of them contributes to it by itself.
    """

    accuracy: float | None = None
    loss: Loss = None
    calibration_error: Loss = None
    measure: Measure | None = None
    score: Loss = None
    further: dict[str, Loss] = Field(default_factory=dict)
    agreement: float | None = None
    agreement_with: list[float] = Field(default_factory=list)
    confidence: Loss = None
    ensemble_loss: Loss = None
    standard_error: Loss = None

    @classmethod
    def of(cls, scores: Scores | Agreement) -> ScoreValues:
        """Make the report of scores."""
        return cls(**_values(scores))

    @property
    def labelled(self) -> bool:
        """Whether a score under labels is known."""
        return self.accuracy is not None or self.score is not None

    @property
    def by(self) -> Measure:
        """What `value` measures."""
        return self.measure or (ACCURACY if self.labelled else AGREEMENT)

    @property
    def value(self) -> float:
        """The accuracy or score; without labels, the agreement with the ensemble."""
        known = (self.accuracy, self.score) if self.labelled else (self.agreement,)
        return next((found for found in known if found is not None), math.nan)

    @property
    def nats(self) -> float | None:
        """The loss; without labels, that under the ensemble's probabilities."""
        return self.loss if self.labelled else self.ensemble_loss

    @property
    def metrics(self) -> dict[str, Any]:
        """What is known, by name."""
        if self.score is not None:
            return {self.by.name: self.score, **self.further, "loss": self.loss}
        names = ("accuracy", "loss", "calibration_error")
        return self.model_dump(include=set(names if self.labelled else ("agreement", "confidence", "ensemble_loss")))


def _values(scores: Scores | Agreement) -> dict[str, Any]:
    return {**_found(scores), "standard_error": standard_error(scores)}


def _found(scores: Scores | Agreement) -> dict[str, Any]:
    if isinstance(scores, Agreement):
        return {
            "agreement": scores.ensemble,
            "agreement_with": list(scores.members),
            "confidence": scores.confidence,
            "ensemble_loss": scores.disagreement,
            "measure": None if scores.measure == AGREEMENT else scores.measure,
        }
    if scores.measure == ACCURACY and CALIBRATION in scores.further:
        return {"accuracy": scores.accuracy, "loss": scores.loss, "calibration_error": scores.calibration_error}
    further = {measure.name: value for measure, value in scores.further.items()}
    return {"score": scores.value, "measure": scores.measure, "further": further, "loss": scores.loss}


class NetworkScores(ScoreValues):
    """The scores of a network in a file; `digest` is the checkpoint's."""

    path: str | None = None
    digest: str | None = None

    @classmethod
    def at(cls, path: Path | None, digest: str | None, scores: Scores | Agreement) -> NetworkScores:
        """Make the report of scores with the file that they belong to."""
        return cls(path=None if path is None else str(path), digest=digest, **_values(scores))


class GroupsSummary(Stored):
    """Summary of the channel groups: free groups, their channels, the proof, what was fixed and why."""

    count: int
    free_channels: int
    proof_error: float | None
    fixed: dict[str, str]


class SharesSummary(Stored):
    """The parents' shares in the child: of the network, and of its stages or groups where they were chosen.

    `loss_before` and `loss_after` are the child's loss (nats) on the images held out, with the network's shares in all
    parts and with the chosen ones. `effective` are those that soft couplings leave of the network's; None where they
    are the same.
    """

    network: list[float]
    effective: list[float] | None = None
    parts: dict[str, list[float]] = Field(default_factory=dict)
    loss_before: Loss = None
    loss_after: Loss = None

    @classmethod
    def of(cls, chosen: ChosenShares, effective: Sequence[float] | None) -> SharesSummary:
        """Make the report of a choice of shares, and of what soft couplings leave of them."""
        parts = {part: list(shares) for part, shares in chosen.shares.parts.items()}
        return cls(
            network=list(chosen.shares.network),
            effective=None if effective is None else list(effective),
            parts=parts,
            loss_before=chosen.before,
            loss_after=chosen.after,
        )


class FamilyRow(ScoreValues):
    """A candidate of goal best: its scores, and the score that chose among them.

    `disagreement` is the cross-entropy (nats) under the ensemble's probabilities on held-out training images, without
    labels; `seconds` is the time that making it took; `chosen` marks the child.
    """

    name: str
    disagreement: Loss
    seconds: float
    chosen: bool

    @classmethod
    def of_candidate(cls, candidate: Candidate, scores: Scores | Agreement, chosen: bool) -> FamilyRow:
        """Make the report of a candidate."""
        return cls(
            name=candidate.name,
            disagreement=candidate.disagreement,
            seconds=candidate.seconds,
            chosen=chosen,
            **_values(scores),
        )


class SelfTrainingSummary(Stored):
    """The effect of self-training on held-out images, and whether it was kept.

    `before` and `after` are the child's distances (nats) from the labels of the ensemble that taught it, `alike_*` the
    numbers of images for which it predicted that ensemble's class.
    """

    before: Loss
    after: Loss
    alike_before: float
    alike_after: float
    images: int
    kept: bool

    @classmethod
    def of(cls, step: Step | None) -> SelfTrainingSummary | None:
        """Make the report of self-training, where there was any."""
        return None if step is None else cls(**{name: getattr(step, name) for name in cls.model_fields})


class Seconds(Stored):
    """Wall-clock seconds of each step."""

    groups: float = 0.0
    align: float = 0.0
    choose: float = 0.0
    merge: float = 0.0
    shares: float = 0.0
    refit: float = 0.0
    renorm: float = 0.0
    best: float = 0.0
    distil: float = 0.0
    self_training: float = 0.0
    finetune: float = 0.0
    evaluate: float = 0.0


class Environment(Stored):
    """The environment of a run."""

    depfuse: str
    python: str
    torch: str
    platform: str
    cpu_count: int | None
    threads: int
    device: str
    device_name: str | None = None


class FusionReport(Stored):
    """The report of `depfuse fuse`; `heads` are the parents with their heads refitted to the ensemble.

    `teacher` is the ensemble that the child learns from, where the parents were renewed first or got one head.
    Where the child was trained further, `trained_parent` is a parent trained as long, from the weights with which it
    agreed best with the ensemble.
    `family` holds all candidates of which the child is the best, where that was asked for. `self_training` tells what
    that changed, where it was asked for.
    `refit_reason` explains how `refit auto` was resolved. `suited_to` is in older reports only: a kind of networks.
    `mirroring` tells whether images were mirrored, and why; None where the parents were not asked. `teaching` tells why
    the parents have no head in common as teachers; None where they have or need none.
    `advice` is the verdict as data; None in reports of versions that had words only. `widened` tells whether
    the child has channels side by side.
    `not_converged` has one sentence for each solver that stopped at its limit, with the best result so far.
    """

    parents: list[NetworkScores]
    ensemble: ScoreValues
    teacher: ScoreValues | None = None
    heads: list[ScoreValues] = Field(default_factory=list)
    trained_parent: NetworkScores | None = None
    naive: ScoreValues
    naive_renorm: ScoreValues
    child: NetworkScores
    verdict: str
    advice: Advice | None = None
    widened: bool = False
    converged: bool = True
    not_converged: list[str] = Field(default_factory=list)
    groups: GroupsSummary
    shares: SharesSummary | None = None
    family: list[FamilyRow] = Field(default_factory=list)
    self_training: SelfTrainingSummary | None = None
    refit_reason: str | None = None
    mirroring: str | None = None
    teaching: str | None = None
    suited_to: str | None = None
    seconds: Seconds
    recipe: dict[str, Any]
    architecture: str
    data: str
    preprocessing: dict[str, Any]
    images: int
    environment: Environment
    command: list[str]

    @property
    def labelled(self) -> bool:
        """Whether the networks were scored on labels."""
        return self.child.labelled

    @property
    def ranked_family(self) -> list[FamilyRow]:
        """Candidates in the order of their agreement with the ensemble, the child first."""

        def rank(row: FamilyRow) -> tuple[bool, float]:
            return not row.chosen, math.inf if row.disagreement is None else row.disagreement

        return sorted(self.family, key=rank)


class PathRow(ScoreValues):
    """A point on a path; `alpha` is the second parent's share."""

    alpha: float

    @classmethod
    def at_point(cls, point: PathPoint) -> PathRow:
        """Make the report of a point on a path."""
        return cls(alpha=point.alpha, **_values(point.scores))


class Barrier(Stored):
    """Height of the path above the straight line between the parents.

    `loss` in nats, `error` as a fraction of wrong images, or the height of 1 minus the score; `naive_*` for the path of
    the plain averages. Without labels both are by the ensemble of the parents: its probabilities, and the images for
    which its class is not predicted.
    """

    loss: Loss
    error: float
    naive_loss: Loss
    naive_error: float

    @classmethod
    def of(cls, path: list[PathPoint], naive: list[PathPoint]) -> Barrier:
        """Compute the barriers of a path and of the naive path over the same alphas."""

        def heights(points: list[PathPoint]) -> tuple[float, float]:
            alphas = [point.alpha for point in points]
            rows = [PathRow.at_point(point) for point in points]
            losses = [math.nan if row.nats is None else row.nats for row in rows]
            errors = [1.0 - row.value for row in rows]
            return barrier(alphas, losses), barrier(alphas, errors)

        (loss, error), (naive_loss, naive_error) = heights(path), heights(naive)
        return cls(loss=loss, error=error, naive_loss=naive_loss, naive_error=naive_error)


class MethodPath(Stored):
    """The path by one method of matching; barriers as in `Barrier`, `seconds` of matching."""

    name: str
    path: list[PathRow]
    barrier_loss: Loss
    barrier_error: float
    seconds: float
    recipe: dict[str, Any]
    not_converged: list[str] = Field(default_factory=list)


class PathReport(FusionReport):
    """The report of `depfuse path`: a fusion, and the networks between the two parents.

    `methods` holds the paths of all methods that were asked for by name; the first one's is `path`, too. Where not
    `path_refitted`, the networks on the path are averages, and the child, which is refitted, lies beside it.
    """

    path: list[PathRow]
    naive_path: list[PathRow]
    barrier: Barrier
    methods: list[MethodPath] = Field(default_factory=list)
    path_refitted: bool = True

    @property
    def curves(self) -> dict[str, list[PathRow]]:
        """The matched paths by what they are called."""
        matched = "matched" if self.path_refitted else "matched, not refitted"
        return {method.name: method.path for method in self.methods} or {matched: self.path}

    @property
    def child_at(self) -> float | None:
        """The second parent's share in the child, where the child is not on the path."""
        return None if self.path_refitted or self.shares is None else self.shares.network[1]


class EvaluationReport(Stored):
    """The report of `depfuse eval`."""

    networks: list[NetworkScores]
    data: str
    preprocessing: dict[str, Any]
    images: int
    seconds: dict[str, float]
    environment: Environment
    command: list[str]

    @property
    def labelled(self) -> bool:
        """Whether the networks were scored on labels."""
        return all(network.labelled for network in self.networks)
