"""A sampler whose suggestions for a trial depend on the seed, the trial's number and the trials before it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

RANDOM_TRIALS = 10  # before the estimators have anything to go by


class NumberedSampler(BaseSampler):
    """Tree-structured Parzen estimators, seeded anew for each trial by its number.

    They are multivariate, one for each group of parameters that occur together. An interrupted search resumes as if it
    had not been interrupted, and workers with one seed suggest different trials. Bergstra et al. 2011; Falkner et al.
    2018 for the multivariate form.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._number = -1
        self._inner: TPESampler

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Run the estimators' hook before a trial."""
        self._of(trial).before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are sampled together."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample the parameters that are sampled together."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter by itself."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Run the estimators' hook after a trial."""
        self._of(trial).after_trial(study, trial, state, values)

    def _of(self, trial: FrozenTrial) -> TPESampler:
        if trial.number != self._number:
            seed = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._inner = TPESampler(
                    n_startup_trials=RANDOM_TRIALS,
                    multivariate=True,
                    group=True,
                    constant_liar=True,
                    seed=seed,
                )
            self._number = trial.number
        return self._inner
