"""Report a fusion: scores of all networks, the verdict, and what the child was made by."""

from __future__ import annotations

from collections.abc import Sequence

from depfuse.cli.along_path import PathBetween
from depfuse.cli.fused import Fused
from depfuse.cli.request import Request
from depfuse.cli.wording import in_options
from depfuse.evaluate import Agreement, Scores
from depfuse.fusion.advice import Advice
from depfuse.fusion.agreement import AgreementComparison, agreement_verdict
from depfuse.fusion.comparison import Comparison
from depfuse.fusion.contenders import advise_on
from depfuse.fusion.result import FusionResult
from depfuse.fusion.verdict import verdict
from depfuse.io.checkpoint import state_digest
from depfuse.report import (
    Barrier,
    FamilyRow,
    FusionReport,
    GroupsSummary,
    NetworkScores,
    PathReport,
    PathRow,
    ScoreValues,
    Seconds,
    SelfTrainingSummary,
    SharesSummary,
    describe_environment,
)
from depfuse.report.tables import short_names


def report_of(
    fused: Fused,
    compared: Comparison | AgreementComparison,
    request: Request,
    *,
    architecture: str,
    seconds: Seconds,
) -> FusionReport:
    """Gather the report of a fusion; `architecture` is the child's, and `seconds` those of each stage."""
    inputs, result = fused.inputs, fused.result
    of_parents: Sequence[Scores | Agreement] = compared.parents
    parents = [
        NetworkScores.at(checkpoint.path, checkpoint.digest, scores)
        for checkpoint, scores in zip(inputs.checkpoints, of_parents, strict=True)
    ]
    advice, words = _advised(fused, compared, request, parents)
    baseline = compared.baseline
    return FusionReport(
        parents=parents,
        ensemble=ScoreValues.of(compared.ensemble),
        teacher=None if compared.teacher is None else ScoreValues.of(compared.teacher),
        heads=[ScoreValues.of(scores) for scores in compared.heads],
        trained_parent=None
        if baseline is None
        else NetworkScores.at(inputs.checkpoints[baseline.parent].path, None, baseline.scores),
        naive=ScoreValues.of(compared.naive),
        naive_renorm=ScoreValues.of(compared.renewed),
        child=NetworkScores.at(request.out, state_digest(result.child.state_dict()), compared.child),
        verdict=in_options(words),
        advice=advice,
        widened=_widened(fused),
        converged=not result.not_converged,
        not_converged=list(result.not_converged),
        groups=GroupsSummary(
            count=result.groups.count,
            free_channels=result.groups.free_channels,
            proof_error=result.groups.proof_error,
            fixed=result.groups.fixed,
        ),
        shares=SharesSummary.of(result.chosen_shares, result.effective_shares),
        family=_family(result, compared.family),
        self_training=SelfTrainingSummary.of(result.self_trained),
        refit_reason=result.refit_reason or None,
        mirroring=in_options(result.mirroring) or None,
        teaching=in_options(result.teaching) or None,
        seconds=seconds,
        recipe=result.recipe.model_dump(mode="json"),
        architecture=architecture,
        data=inputs.data_name,
        preprocessing=inputs.data.preprocessing.model_dump(mode="json"),
        images=compared.child.count,
        environment=describe_environment(inputs.device),
        command=request.command,
    )


def path_report(report: FusionReport, path: PathBetween, *, refitted: bool) -> PathReport:
    """Add a path to the report of its fusion."""
    return PathReport(
        **report.model_dump(),
        path=[PathRow.at_point(point) for point in path.matched],
        naive_path=[PathRow.at_point(point) for point in path.naive],
        barrier=Barrier.of(path.matched, path.naive),
        methods=path.methods,
        path_refitted=refitted,
    )


def _advised(
    fused: Fused, compared: Comparison | AgreementComparison, request: Request, parents: Sequence[NetworkScores]
) -> tuple[Advice | None, str]:
    """Advise on which network to keep, and word the verdict; without labels there are words alone."""
    if not isinstance(compared, Comparison):
        return None, agreement_verdict(compared, short_names(parents))
    best = fused.result.best
    advice = advise_on(
        fused.result,
        compared,
        child=request.out,
        parents=[checkpoint.path for checkpoint in fused.inputs.checkpoints],
        baseline=request.fusion.out_parent,
    )
    return advice, verdict(advice, best.name if best else None)


def _family(result: FusionResult, scored: Sequence[Scores | Agreement]) -> list[FamilyRow]:
    return [
        FamilyRow.of_candidate(candidate, scores, candidate is result.best)
        for candidate, scores in zip(result.family, scored, strict=True)
    ]


def _widened(fused: Fused) -> bool:
    """Tell whether channels stand side by side in the child, so that its class alone does not give its shapes."""
    like = fused.inputs.checkpoints[fused.result.like].card
    return fused.result.partial_merge is not None or bool(like is not None and like.widened and fused.template is None)
