"""Which solvers stopped at their limits."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager

from depfuse.errors import LimitWarning


@contextmanager
def noting_limits() -> Generator[list[str], None, None]:
    """Collect the sentences of solvers that did not come to rest, each once; all warnings go on as they were."""
    sentences: list[str] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield sentences
    for warning in said:
        if issubclass(warning.category, LimitWarning) and str(warning.message) not in sentences:
            sentences.append(str(warning.message))
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
