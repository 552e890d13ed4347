"""docs/howto-command-line.md: what it shows is what happens."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

from aiocheckpoint.cli import cli

from ..support import ROOT
from ..test_docs import DOCS, Block, blocks, script_of
from .test_commands import run

PAGE = DOCS / "howto-command-line.md"


def alike(text: str) -> list[str]:
    """The lines, but for what is not always the same: claims, times, ages, what was coalesced."""
    text = re.sub(r"\d+ records", "SOME records", text)
    text = re.sub(r"[0-9a-f]{32}", "CLAIM", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]{8}\+00:00", "TIME", text)
    text = re.sub(r"\b\d+ s\b", "AGE", text)
    text = re.sub(r"\d[\d.]* (µs|ms|s|AGE|min)(?= |$|\))", "AGE", text, flags=re.MULTILINE)
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_shell_of_the_page_runs(tmp_path: Path) -> None:
    """Each command gives what is shown below it."""
    (tmp_path / "page.py").write_text(script_of(PAGE))
    script = tmp_path / "aiocheckpoint"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W error -m aiocheckpoint "$@"\n')
    script.chmod(0o755)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def said(command: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", command],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    said(f'"{sys.executable}" page.py')
    shown: list[Block] = [block for block in blocks(PAGE) if block.language in ("sh", "text")]
    ran = set()
    for block, below in itertools.pairwise(shown):
        command = "\n".join(block.lines)
        if block.language == "sh" and command.startswith("aiocheckpoint "):
            ran.add(command.split()[1])
            assert below.language == "text"
            wanted, found = alike("\n".join(below.lines)), alike(said(command))
            if command.startswith("aiocheckpoint bench"):  # that prints more, here and there
                assert set(wanted) <= set(found), command
            else:
                assert found == wanted, command
    assert ran == set(cli.commands)


def test_the_exit_codes_of_the_page_are_those_of_the_help() -> None:
    """All of them, in both."""
    codes = re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    told = re.findall(r"^ +(\d+) ", run("ls", "--help").stdout, re.MULTILINE)
    assert codes == told == ["0", "1", "2", "3", "130", "141"]
