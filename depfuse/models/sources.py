"""Import of the user's files and modules that build networks."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from depfuse.errors import ArchitectureError

_loaded: dict[str, None] = {}


def loaded_sources() -> list[str]:
    """List the user's files and modules that networks were built from."""
    return list(_loaded)


def load_sources(sources: Sequence[str]) -> None:
    """Import the files that another process built networks from, so that its networks can be unpickled here.

    Raises
    ------
    ArchitectureError
        There is no such file or module here.
    """
    for source in sources:
        if source not in _loaded:
            load_module(source, source)


def load_module(arch: str, source: str) -> Any:
    """Import a file or module that an architecture string names, and remember it."""
    is_file = source.endswith(".py")
    path = Path(source).expanduser()
    if is_file and not path.is_file():
        raise ArchitectureError(f"{arch}: there is no file {source}")
    try:
        if not is_file:
            with _importable(Path.cwd()):
                module = importlib.import_module(source)
            _loaded[source] = None
            return module
        digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
        name = f"depfuse_user_{path.stem}_{digest}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickles look their module up there
        try:
            with _importable(path.resolve().parent):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        _loaded[source] = None
        return module
    except ModuleNotFoundError as error:
        if error.name is not None and source.split(".")[0] == error.name.split(".")[0]:
            raise ArchitectureError(
                f"{arch}: there is no module {source} here: "
                f"a source is torchvision, timm, a file ending in .py "
                f"or a module that can be imported"
            ) from None
        raise ArchitectureError(f"{arch}: importing {source} raised {describe_error(error)}") from error
    except Exception as error:  # the user's file may raise anything
        raise ArchitectureError(f"{arch}: importing {source} raised {describe_error(error)}") from error


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a user's file import what lies beside it, as Python does when it runs the file."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def describe_error(error: BaseException) -> str:
    """Format an exception: its type and the first line of its message."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
