"""Running the command ``proletarian`` in the process of the tests, as if it were one of its own.

Starting a process takes longer than most commands. Tests of signals, of terminals and of what a
process has in memory start one.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

from sqlalchemy_proletarian.cli.main import main
from sqlalchemy_proletarian.cli.settings import settings


def run_here(
    arguments: Sequence[str], *, cwd: Path | None, environment: Mapping[str, str], given: str = ""
) -> CompletedProcess[str]:
    """Run the command, and return what a process would have returned.

    :param given: the standard input, which is no terminal.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with ExitStack() as stack:
        stack.enter_context(chdir(cwd or Path.cwd()))
        stack.enter_context(patch.dict(os.environ, environment, clear=True))
        stack.enter_context(patch.object(sys, "argv", ["proletarian", *arguments]))
        stack.enter_context(patch.object(sys, "stdin", _input(given)))
        stack.enter_context(patch.object(sys, "stdout", out))
        stack.enter_context(patch.object(sys, "stderr", err))
        stack.enter_context(_without_traces())
        code = _exit_code()
    return CompletedProcess(list(arguments), code, *(_text(stream) for stream in (out, err)))


def _exit_code() -> int:
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)  # noqa: T201 - as the interpreter does
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _input(given: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(given.encode()), "utf-8")


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode()


@contextmanager
def _without_traces() -> Iterator[None]:
    """Undo what a command does to its process: modules of projects, logging, cached settings."""
    path, modules, root = list(sys.path), set(sys.modules), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    settings.cache_clear()
    importlib.invalidate_caches()
    root.handlers[:] = []
    with patch.object(sys, "dont_write_bytecode", True):  # noqa: FBT003
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            for name in set(sys.modules) - modules:
                file = getattr(sys.modules[name], "__file__", None) or ""
                if file.startswith(os.getcwd()):  # noqa: PTH109 - a prefix
                    del sys.modules[name]
            sys.path[:] = path
            settings.cache_clear()
