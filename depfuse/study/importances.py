"""The importance of each parameter of a search."""

from __future__ import annotations

import warnings

from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

FEWEST_TRIALS = 6


def importances(study: Study) -> dict[str, float]:
    """Estimate each parameter's share in the quality, the largest first; the shares sum to one.

    It is the distance between the distribution of its values among the best tenth of the trials and that among all
    (PED-ANOVA, Watanabe et al. 2023). A parameter that only some recipes have is judged by the trials that have it; it
    is left out where these are fewer than `FEWEST_TRIALS` or share one value. With few trials it is a rough guide.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values: dict[str, list[object]] = {}
    for trial in complete:
        for name, value in trial.params.items():
            values.setdefault(name, []).append(value)
    shares: dict[str, float] = {}
    sign = -1.0 if study.directions[0] == StudyDirection.MAXIMIZE else 1.0

    def target(trial: FrozenTrial) -> float:
        return sign * float(trial.values[0])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Some regimes", UserWarning)  # few trials are a rough guide, as documented
        warnings.filterwarnings("ignore", "PedAnovaImportanceEvaluator computes", UserWarning)  # that less is better
        for name, parameter_values in values.items():
            if len(parameter_values) >= FEWEST_TRIALS and len(set(parameter_values)) > 1:
                single = get_param_importances(
                    study, evaluator=PedAnovaImportanceEvaluator(), params=[name], target=target, normalize=False
                )
                shares[name] = single[name]
    total = sum(shares.values()) or 1.0
    return {name: share / total for name, share in sorted(shares.items(), key=lambda pair: -pair[1])}
