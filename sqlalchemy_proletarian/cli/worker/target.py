"""From TARGET, as ``module:object``, to the handlers or the worker of the user's program."""

from __future__ import annotations

import inspect
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

from ...handlers.handler import Handler
from ...handlers.registry import Handlers
from ..importing import make_importable

if TYPE_CHECKING:
    from ...worker.in_loop import AsyncQueueWorker
    from ...worker.threaded import QueueWorker

    Loaded: TypeAlias = Handlers | QueueWorker | AsyncQueueWorker

_MORE: Final = "--debug shows the traceback"
_NAME: Final = r"[^\W\d]\w*"
_TARGET: Final = re.compile(
    rf"(?P<module>{_NAME}(\.{_NAME})*):(?P<path>{_NAME}(\.{_NAME})*)(?P<call>\(\))?"
)
_OBJECT: Final = "a Handlers, a QueueWorker or an AsyncQueueWorker"
_EXPECTED: Final = f"{_OBJECT}, or a function that returns one of them"


class TargetError(click.ClickException):
    """TARGET is wrong, or the code behind it raises an error, which is then the cause."""


def load_target(target: str) -> Loaded:
    """Import the module of a target and return its object.

    The current directory is importable, before everything else.

    :raises TargetError: if there is no such object, or it is of the wrong kind, or the code of the
        module or factory raises an exception; the message says where.
    """
    match = _TARGET.fullmatch(target)
    if match is None or match["module"].endswith(".py"):
        raise _malformed(target)
    make_importable()
    module = _import(match["module"])
    found = _attribute(module, match["module"], match["path"])
    return _loaded(found, match["module"], match["path"], called=match["call"] is not None)


def is_worker(found: object) -> bool:
    """Return whether an object is a worker, without importing what a process does not use."""
    return any(
        (module := sys.modules.get(f"sqlalchemy_proletarian.worker.{name}")) is not None
        and isinstance(found, getattr(module, kind))
        for name, kind in (("threaded", "QueueWorker"), ("in_loop", "AsyncQueueWorker"))
    )


def _malformed(target: str) -> TargetError:
    file, _, name = target.partition(":")
    if file.endswith(".py") or os.sep in file:
        module = file.removesuffix(".py").strip("./").replace(os.sep, ".")
        return TargetError(
            f"TARGET names a module, not a file: write {module}:{name or 'handlers'}"
        )
    if target and ":" not in target:
        return TargetError(f"TARGET must name an object of the module: write {target}:handlers")
    return TargetError(
        f"TARGET must be module:object or module:factory(), such as shop.jobs:handlers, not "
        f"{target!r}"
    )


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if is_part(missing, name) and own_frame(error.__traceback__) is None:
            raise TargetError(_no_module(name, missing)) from error
        raise _import_error(name, error) from error
    except Exception as error:
        raise _import_error(name, error) from error


def is_part(missing: str, name: str) -> bool:
    """Return whether a module is the named one or one of its packages."""
    return f"{name}.".startswith(f"{missing}.")


def _no_module(name: str, missing: str) -> str:
    parent, _, last = missing.rpartition(".")
    package = sys.modules.get(parent)
    if package is not None and not hasattr(package, "__path__"):
        return f"there is no module {name!r}: {parent!r} is a module, not a package"
    paths = list(package.__path__) if package is not None else [str(Path.cwd())]
    names = [found.name for found in pkgutil.iter_modules(paths)]
    close = get_close_matches(last, names, n=1)
    if close:
        meant = ".".join(filter(None, (parent, close[0])))
        return f"there is no module {missing!r}: did you mean {meant!r}?"
    return (
        f"there is no module {missing!r}: run the command in the directory that contains it "
        f"(this is {Path.cwd()}), or install it"
    )


def _attribute(module: ModuleType, name: str, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            usable = _usable(module)
            close = get_close_matches(part, [*usable, *dir(found)], n=1)
            if close:
                remedy = f"did you mean {name}:{path.rpartition(part)[0]}{close[0]}?"
            elif usable:
                remedy = f"it has {', '.join(f'{name}:{one}' for one in usable)}"
            else:
                remedy = f"it needs {_EXPECTED}"
            where = getattr(module, "__file__", None) or name
            msg = f"{where} has no {path!r}: {remedy}"
            raise TargetError(msg) from error
    return found


def _usable(module: ModuleType) -> list[str]:
    """Return the names of the module's registries and workers."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, Handlers) or is_worker(value)
    ]


def _loaded(found: Any, module: str, path: str, *, called: bool) -> Loaded:
    name = f"{module}:{path}"
    if isinstance(found, Handler):
        registries = _usable(sys.modules[module])
        remedy = f"write {module}:{registries[0]}" if registries else "name its Handlers"
        msg = f"{name} is the handler of {found.job_type!r} alone: {remedy}"
        raise TargetError(msg)
    is_final = isinstance(found, Handlers) or is_worker(found)
    if is_final and called:
        msg = f"{name} is a {type(found).__name__}, not a factory: write it without ()"
        raise TargetError(msg)
    if not is_final:
        found = _call(found, name)
        if inspect.isawaitable(found):
            if inspect.iscoroutine(found):
                found.close()
            msg = f"{name} is async: make it a plain function, which may create an AsyncQueueWorker"
            raise TargetError(msg)
        if not (isinstance(found, Handlers) or is_worker(found)):
            msg = f"what {name}() returns is {_kind(found)}: it must return {_OBJECT}"
            raise TargetError(msg)
    if isinstance(found, Handlers) and not any(True for _ in found):
        msg = (
            f"{name} has no handlers: import the modules that register them with "
            f"@{path.rpartition('.')[2]}(…) in {module}"
        )
        raise TargetError(msg)
    return found  # type: ignore[no-any-return]  # a registry or a worker


def _call(factory: Any, name: str) -> Any:
    if not callable(factory) or isinstance(factory, ModuleType):
        msg = f"{name} is {_kind(factory)}: TARGET must be {_EXPECTED}"
        raise TargetError(msg)
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError):
        is_factory = inspect.isroutine(factory) or inspect.isclass(factory)
        kind = f"{_kind(factory)} that needs arguments" if is_factory else _kind(factory)
        msg = f"{name} is {kind}: TARGET must be {_EXPECTED}"
        raise TargetError(msg) from None
    try:
        return factory()
    except Exception as error:
        raise _call_error(name, error) from error


def _kind(found: object) -> str:
    if found is None:
        return "None"
    if inspect.isclass(found):
        return f"the class {found.__qualname__}"
    if inspect.isfunction(found):
        return "a function"
    if isinstance(found, ModuleType):
        return "a module"
    name = type(found).__qualname__
    module = type(found).__module__
    return f"of type {name}" if module == "builtins" else f"of type {module}.{name}"


def _import_error(module: str, error: Exception) -> TargetError:
    return TargetError(f"importing {module} failed: {described(error)}; {_MORE}")


def _call_error(factory: str, error: Exception) -> TargetError:
    return TargetError(f"calling {factory}() failed: {described(error)}; {_MORE}")


def described(error: BaseException, *, installed: bool = True) -> str:
    """Return an exception in one line, with the place in the user's code where it was raised.

    :param installed: whether an installed package may be the user's code.
    """
    text = " ".join(str(error).split())
    name = type(error).__qualname__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{name}: {error.msg} ({_short(error.filename)}, line {error.lineno})"
    line = f"{name}: {text}" if text else name
    frame = own_frame(error.__traceback__, installed=installed)
    return f"{line} ({_short(frame.filename)}, line {frame.lineno})" if frame else line


def own_frame(
    trace: TracebackType | None, *, installed: bool = True
) -> traceback.FrameSummary | None:
    """Return the innermost frame that is in the user's code, preferably in no installed package."""
    frames = [(frame, line) for frame, line in traceback.walk_tb(trace) if not _is_internal(frame)]
    own = [found for found in frames if not _is_installed(found[0].f_code.co_filename)]
    candidates = own or (frames if installed else [])
    if not candidates:
        return None
    frame, line = candidates[-1]
    return traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name)


def _is_internal(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return name.startswith(("<frozen ", _PACKAGE)) or name == _IMPORTLIB


_PACKAGE: Final = str(Path(__file__).parents[2]) + os.sep
_IMPORTLIB: Final = import_module.__code__.co_filename


def _is_installed(file: str) -> bool:
    return any(part in {"site-packages", "dist-packages"} for part in Path(file).parts) or (
        file.startswith(os.path.dirname(os.__file__) + os.sep)  # noqa: PTH120 - a prefix
    )


def _short(file: str) -> str:
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file


def names(values: Iterable[str], most: int = 8) -> str:
    """Return names as text, at most so many."""
    listed = list(values)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
