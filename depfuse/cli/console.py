"""Console output: results on standard output, everything else on standard error."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console, RenderableType

from depfuse.cli.wording import in_options
from depfuse.errors import DepfuseWarning
from depfuse.progress import Work, shown, wording
from depfuse.text import readable

_UNFOLDED = 10_000


class InterruptionError(Exception):
    """A command was interrupted; the sentence says what is lost and what remains."""


class Screen:
    """Prints results, unless the user wants quiet."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    @contextmanager
    def working(self) -> Generator[Work, None, None]:
        """Show progress on standard error while the block runs; in a terminal nothing of it stays.

        Raises
        ------
        InterruptionError
            The user interrupted it; its sentence says what is lost and what remains.
        """
        with shown(not self._quiet) as work:
            before = wording.set(in_options)
            try:
                yield work
            except KeyboardInterrupt:
                raise InterruptionError(work.interrupted()) from None
            finally:
                wording.reset(before)

    def show(self, result: RenderableType) -> None:
        """Print a table or a tree on standard output; it is folded to fit a terminal, and nothing else."""
        if not self._quiet:
            Console(width=None if sys.stdout.isatty() else _UNFOLDED, markup=False, emoji=False).print(result)

    def say(self, text: str) -> None:
        """Print plain text on standard output, not wrapped."""
        if not self._quiet:
            print(readable(text))


def remark(sentence: str) -> None:
    """Tell somebody who waits at a terminal one thing, on standard error; what is piped holds results and mistakes."""
    if sys.stderr.isatty():
        print(f"depfuse: {readable(sentence)}", file=sys.stderr)


def complain(sentence: str) -> None:
    """Print one line on standard error; what the library calls its arguments are options in it."""
    print(f"depfuse: {readable(' '.join(in_options(sentence).split()))}", file=sys.stderr)


@contextmanager
def warnings_in_one_line() -> Generator[None, None, None]:
    """Show every `DepfuseWarning` as one line on standard error, each text once.

    What the user's own filters (`python -W`, PYTHONWARNINGS) say of them counts for more.
    """
    shown: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", DepfuseWarning, append=bool(sys.warnoptions))
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: object) -> None:
            if not issubclass(category, DepfuseWarning):
                usual(message, category, *place)  # type: ignore[arg-type]
            elif str(message) not in shown:
                shown.add(str(message))
                complain(f"warning: {message}")

        warnings.showwarning = show  # type: ignore[assignment]
        yield
