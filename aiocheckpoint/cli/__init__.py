"""The command line. What the commands do lies below; here is parsing and printing."""

from __future__ import annotations

from . import _bench, _moving, _reading, _removing
from ._group import cli

__all__ = ["cli"]

for _module in (_reading, _moving, _removing, _bench):
    for _command in _module.COMMANDS:
        cli.add_command(_command)
