"""Import of the user's files and modules that build networks."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from depfuse.errors import ArchitectureError
from depfuse.networks.isolation import keeping_defaults

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
        with keeping_defaults():
            if is_file:
                module = _load_file(path.resolve())
            else:
                with _importable(Path.cwd()):
                    module = importlib.import_module(source)
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
    except SystemExit as error:
        raise ArchitectureError(
            f"{arch}: importing {source} runs it as a program, which {ending(error)}: put what only a program does"
            " below a line: if __name__ == '__main__':"
        ) from None
    except Exception as error:  # the user's file may raise anything
        raise ArchitectureError(f"{arch}: importing {source} raised {describe_error(error)}") from error


def _load_file(path: Path) -> Any:
    """Import a file under a name of its own, as part of its package where it imports relatively to that."""
    depth = _depth(path)
    if depth > 0:
        return _load_in_package(path, path.parents[min(depth, len(path.parents)) - 1])
    name = f"depfuse_user_{path.stem}_{_digest(path)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _load_in_package(path: Path, root: Path) -> Any:
    """Import a file as a module of the package at `root`, which has a name of its own besides its usual one.

    Two packages of one name can be used in one process; each folder on the way is a package, with or without an
    `__init__.py`.
    """
    before = set(sys.modules)
    name = f"depfuse_user_{root.name}_{_digest(root)}"
    try:
        with _importable(root.parent), _importable(path.parent):
            for folder in [root, *(root / part for part in _between(root, path.parent))]:
                name = name if folder == root else f"{name}.{folder.name}"
                if name not in sys.modules:
                    _add_package(name, folder)
            return importlib.import_module(f"{name}.{path.stem}")
    except BaseException:
        for added in set(sys.modules) - before:
            if added.startswith("depfuse_user_"):
                del sys.modules[added]
        raise


def _add_package(name: str, folder: Path) -> None:
    """Make a folder a package, and run its `__init__.py` where it has one."""
    initial = folder / "__init__.py"
    if not initial.is_file():
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
        return
    spec = importlib.util.spec_from_file_location(name, initial, submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


def _between(root: Path, folder: Path) -> list[Path]:
    """List the folders from below `root` down to `folder`, relative to `root`."""
    parts = folder.relative_to(root).parts
    return [Path(*parts[: number + 1]) for number in range(len(parts))]


def _depth(path: Path) -> int:
    """Count the folders of the package that a file belongs to; 0 where it imports nothing relatively to a package."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # running the file says what is wrong
        return 0
    levels = [node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    deepest = max(levels, default=0)
    if deepest == 0:
        return 0
    packages = 0
    for folder in path.parents:
        if not (folder / "__init__.py").is_file():
            break
        packages += 1
    return max(deepest, packages)


def _digest(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:12]


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a user's file import what lies beside it, as Python does when it runs the file."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def ending(error: SystemExit) -> str:
    """Say that code of the user's wanted to end the process, as a reader of its own arguments does."""
    return f"ends with {error.code}" if isinstance(error.code, str) else f"ends with code {error.code or 0}"


def describe_error(error: BaseException) -> str:
    """Format an exception: its type and the first line of its message."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
