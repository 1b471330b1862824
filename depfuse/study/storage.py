"""Storages of a study, and how trials of workers that were killed are run again.

A study is kept in a file, which appends changes and needs no server, or in a database that several machines reach.
"""

from __future__ import annotations

import re
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import sqlalchemy.exc
from optuna import Study, Trial
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import (
    BaseStorage,
    JournalStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
    fail_stale_trials,
)
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url

from depfuse.errors import StudyError
from depfuse.study.worker_lock import WorkerLock

WORKER = "worker"  # the user attribute of a trial that names who runs it
_NAME = re.compile(r"[0-9a-f]{32}")  # of a worker
GRACE = 3  # heartbeats that may be missed
JUST_BEGUN = 60.0  # seconds in which a trial may be without a worker's name
_EXAMPLE = "give one such as postgresql://user:password@host/database"
_ATTEMPTS = 5  # to make the tables, where another worker makes them at the same time


def run_again(study: Study, trial: FrozenTrial) -> None:
    """Queue the parameters of a trial that did not end, for the next free worker."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback()(study, trial)


class Storage(ABC):
    """A storage of studies.

    Attributes
    ----------
    optuna
        Optuna's storage.
    shown
        Name for messages, without a password or options of the connection, which may hold one.
    """

    optuna: BaseStorage
    shown: str

    @abstractmethod
    def begin(self, trial: Trial) -> None:
        """Mark a trial as run by this worker."""

    @abstractmethod
    def take_over(self, study: Study) -> None:
        """Fail the trials of dead workers, and queue them again."""

    @abstractmethod
    def close(self) -> None:
        """Release locks and connections."""

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turn the exceptions of a storage that fails while it is used into a `StudyError`."""
        try:
            yield
        except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            raise StudyError(f"{self.shown} can no longer be reached: {_reason(error)}") from None


class FileStorage(Storage):
    """A file to which every change is appended; workers on one machine may share it.

    Raises
    ------
    StudyError
        The file cannot be read or written, or is not the file of a study.
    """

    def __init__(self, path: Path) -> None:
        self.shown = str(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not by a symbolic link, which is Optuna's default and on Windows a privilege.
            self.optuna = JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
            self._worker_lock = WorkerLock(path.parent)
        except OSError as error:
            raise StudyError(f"study {path} cannot be used: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(f"{path} is no study, or is damaged: {_reason(error)}") from None

    def begin(self, trial: Trial) -> None:
        """Mark a trial as run by this worker."""
        trial.set_user_attr(WORKER, self._worker_lock.name)

    def take_over(self, study: Study) -> None:
        """Fail the trials of dead workers, and queue them again."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker, started = trial.user_attrs.get(WORKER), trial.datetime_start or datetime.now()
            if worker is None:
                lost = (datetime.now() - started).total_seconds() > JUST_BEGUN
            else:  # a name is part of a path, and what is no name is nobody's
                named = isinstance(worker, str) and _NAME.fullmatch(worker) is not None
                lost = not named or not self._worker_lock.alive(worker)
            if lost:
                with suppress(UpdateFinishedTrialError, ValueError):  # another worker was faster
                    study.tell(trial.number, state=TrialState.FAIL)
                    run_again(study, trial)

    def close(self) -> None:
        """Release locks and connections."""
        self._worker_lock.close()


def parse_url(url: str) -> URL:
    """Parse the URL of a database; a `StudyError` says what is wrong with it, without its password."""
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise StudyError(f"`url` is no URL of a database: {_EXAMPLE}") from None
    if "@" in (parsed.host or ""):  # the rest of a password
        raise StudyError(f"`url` has more than one @, which in a password is written %40: {_EXAMPLE}")
    return parsed


class DatabaseStorage(Storage):
    """A database at a URL; workers anywhere may share it, and each sends a heartbeat.

    Parameters
    ----------
    url
        URL in SQLAlchemy's form, such as `postgresql://user:password@host/database`.
    heartbeat
        Seconds between two heartbeats. A trial is given up after three of them.

    Raises
    ------
    StudyError
        The URL is malformed, its driver is not installed, the database cannot be reached, or its tables are of another
        version of Optuna.
    """

    def __init__(self, url: str, heartbeat: int) -> None:
        parsed = parse_url(url)
        self.shown = parsed.set(query={}).render_as_string(hide_password=True)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        for attempt in range(_ATTEMPTS):
            try:
                self.optuna = self._open(parsed.render_as_string(hide_password=False), heartbeat)
                return
            except (sqlalchemy.exc.NoSuchModuleError, ImportError):
                raise StudyError(
                    f"{self.shown} needs a driver that is not installed, for PostgreSQL by "
                    "pip install 'depfuse[postgresql]'"
                ) from None
            except RuntimeError:
                raise StudyError(
                    f"{self.shown} holds studies in the tables of another version of Optuna: upgrade it by "
                    "`optuna storage upgrade`, or give another database"
                ) from None
            except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
                at_once = isinstance(error, sqlalchemy.exc.IntegrityError) or "already exists" in str(error)
                if not at_once or attempt == _ATTEMPTS - 1:
                    raise StudyError(f"{self.shown} cannot be reached: {_reason(error)}") from None
                time.sleep(0.5)

    def begin(self, trial: Trial) -> None:
        """Mark a trial as run by this worker: its heartbeat does."""

    def take_over(self, study: Study) -> None:
        """Fail the trials of dead workers, and queue them again."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(study)

    def close(self) -> None:
        """Release locks and connections."""
        self.optuna.remove_session()

    def _open(self, url: str, heartbeat: int) -> RDBStorage:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return RDBStorage(
                url,
                heartbeat_interval=heartbeat,
                grace_period=GRACE * heartbeat,
                heartbeat_stale_trial_callback=run_again,
            )


def _reason(error: BaseException) -> str:
    """Return the first line of a library's message, without the statement that it was about."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ is not None else error
    text = str(getattr(cause, "orig", None) or cause).strip()
    return (text.splitlines() or [type(cause).__name__])[0].rstrip(".")
