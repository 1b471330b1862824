"""A search: a study, its workers, and its end."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna import Study, Trial
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.pruners import MedianPruner
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from depfuse.errors import StudyError
from depfuse.study.objective import Objective
from depfuse.study.sampler import NumberedSampler
from depfuse.study.storage import Storage, run_again

IDENTITY = "depfuse"  # the study's user attribute that says what it is of
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
TRIALS_BEFORE_PRUNING = 8
POLL = 1.0  # seconds between two looks at the trials of others
PATIENCE = 10.0  # seconds that another worker may take to say what its new study is of

# What a study is of -> how a sentence names it where it differs.
_NAMES = {
    "data": "data",
    "judged": "images to judge by",
    "labelled": "labels to judge by",
    "timed": "objectives",
    "kept": "settings that are kept",
    "networks": "architectures, classes or pre-processing",
}


class _Surplus(Exception):  # noqa: N818
    """Signal that a trial began although enough trials had begun."""


def open_study(
    storage: Storage,
    name: str,
    identity: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    labelled: bool,
    timed: bool,
    seed: int,
    resume: bool,
) -> Study:
    """Create a study, or resume one.

    Parameters
    ----------
    identity
        Data that must be the same for all trials: `parents`, each a path and a digest, and the keys of `_NAMES`.
    defaults
        Parameters of the first trial.
    labelled, timed
        See `Objective`.
    seed
        Seed of the suggestions.
    resume
        True if the study may exist already.

    Raises
    ------
    StudyError
        A study of that name exists and is not to be resumed, or it has another identity; the message says which.
    """
    directions = [StudyDirection.MAXIMIZE if labelled else StudyDirection.MINIMIZE]
    directions += [StudyDirection.MINIMIZE] * timed
    pruner = MedianPruner(n_startup_trials=TRIALS_BEFORE_PRUNING)
    settings: dict[str, Any] = {"storage": storage.optuna, "sampler": NumberedSampler(seed), "pruner": pruner}
    with storage.reached(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            study = optuna.create_study(study_name=name, directions=directions, **settings)
        except DuplicatedStudyError:
            study = optuna.load_study(study_name=name, **settings)
            _check(study, storage, identity, resume)
            return study
        study.set_user_attr(IDENTITY, dict(identity))  # before any trial: a study of trials without it is another's
        study.enqueue_trial(dict(defaults))
    return study


def _check(study: Study, storage: Storage, identity: Mapping[str, Any], resume: bool) -> None:
    where = f"{storage.shown} holds a study {study.study_name!r}"
    recorded = _wait_for_identity(study)
    if recorded is None:
        raise StudyError(f"{where} that is not one of depfuse tune: choose another `name`")
    if not _is_whole(recorded):
        raise StudyError(f"{where} that is damaged: choose another `name`")
    if not resume:
        raise StudyError(f"{where} already: go on with it by `resume=True`, or choose another `name`")
    for (path, digest), (now, digest_now) in zip(recorded["parents"], identity["parents"], strict=False):
        if digest != digest_now:
            changed = f"{now} has changed since" if now == path else f"{now} is not {path}"
            raise StudyError(f"{where} of other parents: {changed}; choose another `name`")
    if len(recorded["parents"]) != len(identity["parents"]):
        raise StudyError(f"{where} of {len(recorded['parents'])} parents, not {len(identity['parents'])}")
    for key, name in _NAMES.items():
        if recorded.get(key) != identity.get(key):
            raise StudyError(
                f"{where} with other {name} ({recorded.get(key)}, not {identity.get(key)}): give the same, or choose "
                "another `name`"
            )


def _wait_for_identity(study: Study) -> Any:
    """Return what a study is of, and None if nothing says so.

    The worker that creates a study says what it is of and then queues its first trial. Trials are read before the
    identity here, so that a study with trials and without an identity never had one, and both are waited for, so that
    no worker suggests parameters before the first trial is queued.
    """
    begun = time.monotonic()
    while True:
        has_trials = bool(study.get_trials(deepcopy=False))
        recorded = study.user_attrs.get(IDENTITY)
        if has_trials or time.monotonic() - begun > PATIENCE:
            return recorded
        time.sleep(POLL / 10)


def _is_whole(stored: Any) -> bool:
    """Tell whether a recorded identity has its parents, each a path and a digest."""
    parents = stored.get("parents") if isinstance(stored, dict) else None
    return isinstance(parents, list) and all(isinstance(parent, list) and len(parent) == 2 for parent in parents)


class Search:
    """A worker that runs trials of a study, beside others, until so many have finished.

    A trial whose worker was killed or interrupted is run again by the next free worker; none counts twice.

    Parameters
    ----------
    study, storage
        As `open_study` gives it.
    objective
        The function that a trial evaluates.
    trials
        Number of trials that the study shall have in the end, those of other workers included.
    on_trial
        Called after each trial of this worker.
    """

    def __init__(
        self,
        study: Study,
        storage: Storage,
        objective: Objective,
        trials: int,
        on_trial: Callable[[FrozenTrial], None] | None = None,
    ) -> None:
        self._study, self._storage, self._objective = study, storage, objective
        self._trials, self._on_trial = trials, on_trial
        self._running: int | None = None

    def run(self) -> None:
        """Run trials until there are enough.

        Raises
        ------
        StudyError
            The storage can no longer be reached.
        DepfuseError
            The parents or the data cannot be used, whatever the recipe.
        """
        with self._storage.reached():
            while True:
                self._storage.take_over(self._study)
                states = [trial.state for trial in self._study.get_trials(deepcopy=False)]
                if sum(state in FINISHED for state in states) >= self._trials:
                    return
                begun = sum(state != TrialState.FAIL for state in states)
                if begun < self._trials or TrialState.WAITING in states:
                    self._run_one()
                else:  # others run the last ones, and may be killed
                    time.sleep(POLL)

    def _run_one(self) -> None:
        try:
            self._study.optimize(self._run, n_trials=1, catch=(_Surplus,), callbacks=[self._done])
        except KeyboardInterrupt:
            if self._running is not None:
                run_again(self._study, self._study.trials[self._running])
            raise
        except Exception:
            # It may have taken this worker so long to show a sign of life that another one took the trial over.
            if self._running is None or not self._taken_over(self._running):
                raise

    def _taken_over(self, number: int) -> bool:
        histories = (RetryHeartbeatStaleTrialCallback.retry_history(trial) for trial in self._study.trials)
        return any(number in history for history in histories)

    def _run(self, trial: Trial) -> Any:
        earlier = self._study.get_trials(deepcopy=False)[: trial.number]
        if sum(other.state != TrialState.FAIL for other in earlier) >= self._trials:
            raise _Surplus
        self._running = trial.number
        self._storage.begin(trial)
        return self._objective(trial)

    def _done(self, study: Study, trial: FrozenTrial) -> None:
        self._running = None
        if self._on_trial is not None and trial.state in FINISHED:
            self._on_trial(trial)
