"""The tutorial, to the letter: its files are saved, its commands run, their output is compared.

These comments on the page, which readers do not see, say what is more than a command that ends:

* ``<!-- runs: NAME -->``: the command of the next block keeps running, in a terminal of that name;
* ``<!-- prints: NAME -->``: the next block is what that terminal prints from now on;
* ``<!-- browser -->``: in the dashboard, what is bold in the next paragraph is followed, and what
  is marked as code is shown.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest

from .programs import ROOT, environment

PAGE = ROOT / "docs" / "tutorial.md"

PATIENCE = 60.0
"""Seconds in which something is printed, on a busy machine."""

_STEP = re.compile(
    r"Save this as\s`(?P<file>[^`]+)`[^`]*?:\n\n```python\n(?P<content>.*?)^```"
    r"|(?:^<!-- (?P<mark>runs|prints): (?P<terminal>\w+) -->\n)?"
    r"^```(?:console|text)\n(?P<block>.*?)^```"
    r"|^<!-- browser -->\n(?P<paragraph>.*?)\n\n",
    re.MULTILINE | re.DOTALL,
)

_DIFFERS = [
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "ID"),
    (r"\[\d+\]|\bprocess +\d+", "PID"),
    (r"\b\d+(\.\d+)? ?(µs|ms|s|min)\b( ago)?|\bnow\b", "DURATION"),
    (r"(?<=proletarian worker )[\d.]+\w*", "VERSION"),
    (r"[ ─=]+", " "),
]
"""What differs each time: patterns, and what stands for them when an output is compared."""


def test_the_tutorial(tmp_path: Path) -> None:
    """Every file and every command of the page, in order, from an empty directory."""
    project = tmp_path / "signup"
    project.mkdir()
    with Reader.at_work(project, Path(sys.executable).parent) as reader:
        reader.follow_all(PAGE.read_text())
    assert reader.commands > 20
    assert reader.files == {
        *("server.py", "hello.py", "models.py", "migrations/env.py", "mail.py", "jobs.py"),
        *("migrations/versions/0002_job_tables.py", "main.py", "test_sign_up.py"),
    }


def test_the_first_job_in_an_empty_environment(tmp_path: Path, built: dict[str, Path]) -> None:
    """What the page installs is enough; nothing else is there."""
    page = PAGE.read_text()
    scripts = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    installed = subprocess.run(
        ["bash", "-ec", "".join(script for script in scripts if "pip install" in script)],
        cwd=tmp_path,
        env=environment(PATH=path, PIP_FIND_LINKS=str(built["wheel"].parent)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stdout
    project = tmp_path / "signup"
    with Reader.at_work(project, project / ".venv" / "bin") as reader:
        reader.follow_all(page[: page.index("## 4. ")])
        assert reader.commands == 5


def test_every_block_of_the_tutorial_is_a_step() -> None:
    """A block that the test above does not know is a shell script, for Docker and pip."""
    text = PAGE.read_text()
    steps = sum(step["paragraph"] is None for step in _STEP.finditer(text))
    scripts = len(re.findall(r"^```sh$", text, re.MULTILINE))
    assert len(re.findall(r"^```\w+$", text, re.MULTILINE)) == steps + scripts
    assert scripts == 4


def test_the_tutorial_installs_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = re.findall(r"'sqlalchemy-proletarian\[([\w,]+)\]'", PAGE.read_text())
    assert len(found) == 2
    assert set(",".join(found).split(",")) <= set(extras["optional-dependencies"])


@dataclass
class Terminal:
    """A command that keeps running, and its output."""

    process: subprocess.Popen[str]
    file: Path
    seen: int = 0

    def expect(self, shown: str) -> str:
        """Wait until the next lines of the output are the shown ones, and return them."""
        pattern = pattern_of(shown)
        end = monotonic() + PATIENCE
        while True:
            printed = self.file.read_text()[self.seen :]
            if found := match_of(pattern, printed, whole=False):
                self.seen += len(found)
                return found
            alive = self.process.poll() is None
            assert alive, f"it has ended:\n{printed}"
            assert monotonic() < end, f"expected\n{shown}\nprinted\n{printed}"
            sleep(0.05)


@dataclass
class Reader:
    """Somebody who does what the page says."""

    folder: Path
    programs: Path
    stack: ExitStack
    ports: dict[str, int]
    variables: dict[str, str] = field(default_factory=dict)
    terminals: dict[str, Terminal] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    commands: int = 0

    @classmethod
    @contextmanager
    def at_work(cls, folder: Path, programs: Path) -> Iterator[Reader]:
        """Yield a reader with the programs of an environment, and end what they started."""
        with ExitStack() as stack:
            yield cls(folder, programs, stack, {"8000": free_port(), "8080": free_port()})

    def follow_all(self, page: str) -> None:
        """Do what a page says."""
        for step in _STEP.finditer(page):
            self.follow(step)
        self.close()

    def follow(self, step: re.Match[str]) -> None:
        """Do what a step says."""
        if name := step["file"]:
            (self.folder / name).write_text(step["content"])
            self.files.add(name)
        elif step["paragraph"]:
            self.browse(" ".join(step["paragraph"].split()))
        elif step["mark"] == "prints":
            self.terminals[step["terminal"]].expect(step["block"])
        else:
            assert step["block"].startswith("$ ")
            for part in re.split(r"^\$ ", step["block"], flags=re.MULTILINE)[1:]:
                command, _, shown = part.partition("\n")
                self.commands += 1
                if step["mark"] == "runs":
                    self.start(step["terminal"], command, shown)
                else:
                    self.run(command, shown)

    def run(self, command: str, shown: str) -> None:
        """Run a command that ends, and compare what it prints."""
        done = subprocess.run(
            ["bash", "-c", self.ported(command)],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        # The exit code is told by the output: an error is a line that begins with "Error".
        assert (done.returncode != 0) == ("Error:" in shown), done.stdout
        expected = pattern_of(self.ported(shown))
        assert match_of(expected, done.stdout, whole=True) is not None, (
            f"$ {command}\nexpected\n{shown}\nprinted\n{done.stdout}"
        )

    def start(self, name: str, command: str, shown: str) -> None:
        """Start a command that keeps running, and wait until it has printed what is shown."""
        file = self.folder.parent / f"{name}.txt"
        with file.open("w") as output:
            process = self.stack.enter_context(
                subprocess.Popen(
                    ["bash", "-c", f"exec {self.ported(command)}"],
                    cwd=self.folder,
                    env=self.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
            )
        self.stack.callback(end, process)
        self.terminals[name] = Terminal(process, file)
        printed = self.terminals[name].expect(self.ported(shown))
        if setting := re.match(r"export (\w+)='(.+)'\n", printed):
            self.variables[setting[1]] = setting[2]

    def browse(self, paragraph: str) -> None:
        """Open the dashboard, follow what is bold, and see what is marked as code."""
        site = f"http://127.0.0.1:{self.ports['8080']}"
        with httpx.Client(base_url=site, follow_redirects=True) as browser:
            answers = [browser.get("/")]
            for label in re.findall(r"\*\*(.+?)\*\*", paragraph):
                answers.append(follow_label(browser, answers[-1].text, label))
        assert {answer.status_code for answer in answers} == {200}
        pages = "".join(unescape(answer.text) for answer in answers)
        assert [code for code in re.findall(r"`(.+?)`", paragraph) if code not in pages] == []

    def close(self) -> None:
        """Press Ctrl-C in each terminal, that of the database last."""
        for name, terminal in reversed(self.terminals.items()):
            end(terminal.process)
            assert "Traceback" not in terminal.file.read_text(), name

    def ported(self, text: str) -> str:
        """Return a text with ports that are free on this machine."""
        for port, free in self.ports.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
        if text.startswith("proletarian dashboard "):
            text += f" --port {self.ports['8080']}"
        if text.startswith("uvicorn "):
            text += f" --port {self.ports['8000']}"
        return text

    def environment(self) -> dict[str, str]:
        """Return the variables of a new terminal in which the virtual environment is active."""
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        given = environment(PATH=path, PYTHONUNBUFFERED="1", **self.variables)
        dropped = ("PYTEST_", "COV_", "DATABASE_", "PROLETARIAN_")
        return {
            name: value
            for name, value in given.items()
            if name in self.variables or not name.startswith(dropped)
        }


def follow_label(browser: httpx.Client, html: str, label: str) -> httpx.Response:
    """Follow the link with a label, or press the button, with the fields of its form."""
    if link := re.search(rf'<a [^>]*href="([^"]+)"[^>]*>{re.escape(label)}</a>', html):
        return browser.get(unescape(link[1]))
    for form in re.findall(r"<form.*?</form>", html, re.DOTALL):
        action = re.search(r'action="([^"]+)"', form)
        if action and re.search(rf"<button[^>]*>{re.escape(label)}</button>", form):
            fields = re.findall(r'name="(\w+)" value="([^"]*)"', form)
            data = {name: unescape(value) for name, value in fields}
            return browser.post(action[1], data=data)
    pytest.fail(f"there is no {label!r} on\n{html}")


def pattern_of(shown: str) -> str:
    """Return a regular expression for a shown output, in which … stands for any text."""
    lines = [re.escape(line).replace("…", ".*?") for line in normal(shown).splitlines()]
    return "".join(r"(?:.*\n)*?" if line == ".*?" else rf"{line}\n" for line in lines)


def match_of(pattern: str, printed: str, *, whole: bool) -> str | None:
    """Return the beginning of an output that matches, or all of it."""
    lines = printed.splitlines(keepends=True)
    if whole:
        text = "".join(f"{normal(line)}\n" for line in lines)
        return printed if re.fullmatch(pattern, text) else None
    complete = [line for line in lines if line.endswith("\n")]
    for count in range(1, len(complete) + 1):
        if re.fullmatch(pattern, "".join(f"{normal(line)}\n" for line in complete[:count])):
            return "".join(complete[:count])
    return None


def normal(text: str) -> str:
    """Return a text without what differs each time."""
    for pattern, name in _DIFFERS:
        text = re.sub(pattern, name, text)
    return "\n".join(line.strip() for line in text.splitlines())


def end(process: subprocess.Popen[str]) -> None:
    """Press Ctrl-C in a terminal, and expect that its program ends soon."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
