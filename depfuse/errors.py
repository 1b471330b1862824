"""The one family of exceptions and warnings that depfuse raises on purpose."""

from __future__ import annotations


class DepfuseError(Exception):
    """Input that cannot be worked with: one sentence that names what is wrong and what to do.

    The command line prints the sentence and exits with code 2; nothing has been written by then.
    """


class ArchitectureError(DepfuseError):
    """An architecture string does not resolve, or the network it names cannot be built or run."""


class CheckpointError(DepfuseError):
    """A checkpoint cannot be read, does not fit its network, or cannot be written."""


class DataError(DepfuseError):
    """A data set cannot be read, or does not fit the network."""


class RecipeError(DepfuseError):
    """A recipe is contradictory, or does not fit the parents or the data."""


class FusionError(DepfuseError):
    """A child came out that is of no use: it is not finite, or gives the same for every input."""


class GroupError(DepfuseError):
    """The channel groups of a network cannot be found or proved."""


class DeviceError(DepfuseError):
    """A device that was asked for is not there."""


class ProcessError(DepfuseError):
    """One of several processes that work together has died."""


class StudyError(DepfuseError):
    """The study of a search cannot be reached, or is not the one that it is taken for."""


class ReportError(DepfuseError):
    """A report cannot be read, or a plot cannot be drawn."""


class DepfuseWarning(UserWarning):
    """Something the user should know, and that does not make the result wrong."""


class LimitWarning(DepfuseWarning):
    """A solver stopped at its limit before it converged; its best result so far is used."""
