"""README and docs: what they show runs, what they link to is there."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import aiocheckpoint

from .support import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
NUMBERED = re.compile(r"did item-(\d+)")


class Block(NamedTuple):
    """A fenced block of a page. `title` is the file that it is to be saved as, if it has one."""

    language: str
    title: str
    first: int
    lines: list[str]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    block: Block | None = None
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if block is not None and line == "```":
            yield block
            block = None
        elif block is not None:
            block.lines.append(line)
        elif fence := re.fullmatch(r"```(\w+)(?: title=\"(.+)\")?", line):
            block = Block(fence[1], fence[2] or "", number + 1, [])
        else:
            assert not line.startswith("```"), f"{page.name}:{number}: a fence without a language"
    assert block is None, f"{page.name}: a fence is not closed"


def script_of(page: Path) -> str:
    """The blocks of Python that are no files, one after the other, each at its page's lines."""
    lines: list[str] = []
    for block in blocks(page):
        if block.language == "python" and not block.title:
            lines += [""] * (block.first - 1 - len(lines)) + block.lines
    return "\n".join(lines) + "\n"


def save_files(page: Path, directory: Path) -> list[str]:
    """Save the blocks that are files; their names."""
    titled = [block for block in blocks(page) if block.title]
    for block in titled:
        (directory / block.title).write_text("\n".join(block.lines) + "\n")
    return [block.title for block in titled]


class Program:
    """A program of a page, running in a directory of its own, where warnings are errors."""

    def __init__(self, directory: Path, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-W", "error", name],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def until(self, text: str) -> str:
        """Read lines until one has this text; that line."""
        assert self._process.stdout is not None
        seen = []
        for line in self._process.stdout:
            if text in line:
                return line
            seen.append(line)
        raise AssertionError(f"it never said {text!r}:\n{''.join(seen)}")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for its end; exit status and the rest of what it says."""
        try:
            out, _ = self._process.communicate(timeout=40)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self._process.returncode, out


def run(directory: Path, name: str) -> str:
    """Run a program to its end, which must be good; what it says."""
    status, out = Program(directory, name).end()
    assert status == 0, out
    return out


@pytest.fixture
def tutorial(tmp_path: Path) -> Path:
    """A directory with the tutorial's files, whose work takes a fifth of the time."""
    for name in save_files(DOCS / "tutorial.md", tmp_path):
        path = tmp_path / name
        path.write_text(path.read_text().replace(".sleep(0.05)", ".sleep(0.01)"))
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    """The blocks of a page run as one program; each block that is a file compiles."""
    for name in save_files(page, tmp_path):
        compile((tmp_path / name).read_text(), name, "exec", dont_inherit=True)
    script = tmp_path / f"{page.stem}.py"
    script.write_text(script_of(page))
    run(tmp_path, script.name)


def test_every_file_of_the_tutorial_is_run(tutorial: Path) -> None:
    """What its shell blocks run are its files, and the tests below run them all."""
    named = set()
    for block in blocks(DOCS / "tutorial.md"):
        if block.language == "sh":
            named |= {line.split()[-1] for line in block.lines if "python " in line}
    files = {path.name for path in tutorial.iterdir()}
    assert named <= files
    assert files == {"forgetful.py", "job.py", "retrying.py", "service.py", "look.py"}


def test_the_job_of_the_tutorial_survives_kill_9(tutorial: Path) -> None:
    """Killed twice, it goes on where it was each time and leaves out and repeats nothing."""
    assert run(tutorial, "forgetful.py").endswith("the total is 410\n")
    reached = -1
    for milestone in ("did item-20", "did item-40"):
        job = Program(tutorial, "job.py")
        begun = int(job.until("did item-").split("-")[1])
        assert reached < begun <= reached + 2  # at most one item was written and not yet printed
        job.until(milestone)
        job.signal(signal.SIGKILL)
        status, rest = job.end()
        assert status == -signal.SIGKILL
        reached = max([int(milestone[9:]), *map(int, NUMBERED.findall(rest))])
    out = run(tutorial, "job.py")
    numbers = [int(number) for number in NUMBERED.findall(out)]
    assert numbers == list(range(numbers[0], 60))
    assert reached < numbers[0] <= reached + 2
    assert out.endswith("the total is 410\n")
    assert run(tutorial, "job.py") == "the total is 410\n"


def test_the_task_of_the_tutorial_fails_is_retried_and_is_done(tutorial: Path) -> None:
    """It resumes at seq 20 after its failure; when it is done it answers without running."""
    log = run(tutorial, "retrying.py").splitlines()
    assert "epoch 1, attempt 1, seq 0" in log[0]
    assert "('the line went dead')): retry 1 of 5 in " in log[1]
    assert "epoch 2, attempt 2, seq 20" in log[2]
    assert log[3:] == ["the total is 410"]
    assert run(tutorial, "retrying.py").splitlines() == [
        "'totals/monday' is done since attempt 2: returning its result",
        "the total is 410",
    ]


def test_the_task_of_the_tutorial_stops_on_sigterm(tutorial: Path) -> None:
    """SIGTERM ends it with status 143, and the next start ends the job."""
    task = Program(tutorial, "retrying.py")
    task.until("claimed")
    task.signal(signal.SIGTERM)
    assert task.end()[0] == 128 + signal.SIGTERM
    assert run(tutorial, "retrying.py").endswith("the total is 410\n")


def test_the_service_of_the_tutorial_stops_and_goes_on(tutorial: Path) -> None:
    """SIGTERM stops all its runs, the next start ends them all, and each can be looked at."""
    service = Program(tutorial, "service.py")
    service.until("tuesday")  # has failed once: all four are under way
    service.signal(signal.SIGTERM)
    status, out = service.end()
    assert status == 0
    assert out.endswith("stopped: start me again and I go on\n")
    days = ["monday", "tuesday", "wednesday", "thursday"]
    assert run(tutorial, "service.py").endswith("".join(f"{day} 410\n" for day in days))
    looked = run(tutorial, "look.py").splitlines()
    assert [line.split()[:2] for line in looked] == [[f"totals/{d}", "done"] for d in sorted(days)]


def kill_at(directory: Path, name: str, says: str, milestones: list[int]) -> None:
    """Start a program that says `says` and a number again and again, and kill it once the number
    is past a milestone: each start goes on behind what the one before had said."""
    said = -1
    for milestone in milestones:
        program = Program(directory, name)
        begun = number = int(program.until(says).removeprefix(says).split()[0])
        assert begun > said
        while number < milestone:
            number = int(program.until(says).removeprefix(says).split()[0])
        program.signal(signal.SIGKILL)
        status, rest = program.end()
        assert status == -signal.SIGKILL
        said = max([number, *map(int, re.findall(rf"{says}(\d+)", rest))])


def test_the_training_of_the_files_page_survives_kill_9(tmp_path: Path) -> None:
    """Killed three times, its model has each step once, in the log as in the weights."""
    save_files(DOCS / "howto-files.md", tmp_path)
    kill_at(tmp_path, "train.py", "saved step ", [30, 80, 120])
    assert run(tmp_path, "train.py").endswith("trained 200 steps\n")
    log = (tmp_path / "model" / "log.txt").read_text()
    assert log == "".join(f"step {n}\n" for n in range(200))
    weights = (tmp_path / "model" / "weights.bin").read_bytes()
    assert weights[: 8 * 200] == b"".join(n.to_bytes(8, "little") for n in range(200))
    assert weights[8 * 200 :] == bytes(6_000_000 - 8 * 200)


def test_the_moved_epochs_of_the_files_page_survive_kill_9(tmp_path: Path) -> None:
    """Killed three times, no epoch is lost or repeated, and nothing stays in the spool."""
    save_files(DOCS / "howto-files.md", tmp_path)
    kill_at(tmp_path, "epochs.py", "epoch ", [10, 30, 60])
    assert run(tmp_path, "epochs.py").endswith(f"every weight is {sum(range(100))}\n")
    assert not (tmp_path / "epochs.db-spool").exists()


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("C*.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link names a file that exists, and a heading that it has."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(path), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("C*.md")], ids=lambda page: page.name)
def test_files_of_ours_that_are_named_exist(page: Path) -> None:
    """What a page names as a file of the repository is one."""
    paths = re.findall(r"`((?:aiocheckpoint|tests|docs|examples)/[\w./]*)`", page.read_text())
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", aiocheckpoint.__all__)
def test_the_reference_has_a_section_for(name: str) -> None:
    """Every public name has a section."""
    assert f"\n### `{name}`\n" in (DOCS / "reference.md").read_text()


def test_the_reference_is_made_from_the_docstrings() -> None:
    """docs/reference.md is up to date; if not: python docs/make_reference.py"""
    page = runpy.run_path(str(DOCS / "make_reference.py"))["page"]()
    assert page == (DOCS / "reference.md").read_text(), "run: python docs/make_reference.py"


def test_the_readme_shows_the_guarantees_the_docs_explain() -> None:
    """Each row of the README's table has its section in docs/guarantees.md."""
    table = (ROOT / "README.md").read_text().split("\n## ")[1]
    rows = re.findall(r"^\| (?!what happens)", table, re.MULTILINE)
    sections = re.findall(r"^## \d\. (.+)$", (DOCS / "guarantees.md").read_text(), re.MULTILINE)
    assert len(rows) == len(sections)
