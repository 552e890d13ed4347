"""The public surface: its names, their docstrings, what importing it costs."""

from __future__ import annotations

import inspect
import pickle
from importlib.metadata import version
from typing import Any

import pytest

import aiocheckpoint
from aiocheckpoint import Checkpointer, Keyring, RetryPolicy, Runtime, Task, blocking

from .support import run_script

FUNCTIONS = {"open", "run", "task", "current"}
CLASSES = {
    "Keyring",
    "Checkpointer",
    "Runtime",
    "RetryPolicy",
    "Task",
    "Outcome",
    "Checkpoint",
    "Statistics",
}
MODULES = {"blocking"}
CONTRACTS = {"Store", "Codec", "MsgspecCodec", "PickleCodec"}
TREE = {
    "CheckpointError": Exception,
    "StoreError": aiocheckpoint.CheckpointError,
    "StoreUnavailableError": aiocheckpoint.StoreError,
    "ConflictError": aiocheckpoint.StoreError,
    "FencedError": aiocheckpoint.CheckpointError,
    "CorruptCheckpointError": aiocheckpoint.CheckpointError,
    "CodecError": aiocheckpoint.CheckpointError,
    "FlushTimeoutError": aiocheckpoint.CheckpointError,
    "KeyInUseError": aiocheckpoint.CheckpointError,
    "ClosedError": aiocheckpoint.CheckpointError,
    "StoppedError": aiocheckpoint.CheckpointError,
    "RecoverableError": Exception,
    "NonRecoverableError": Exception,
}


def test_all_is_the_contract() -> None:
    """`__all__` is what the design names, sorted, and nothing else."""
    names = FUNCTIONS | CLASSES | CONTRACTS | MODULES | set(TREE)
    assert set(aiocheckpoint.__all__) == names
    assert sorted(aiocheckpoint.__all__) == aiocheckpoint.__all__
    assert all(hasattr(aiocheckpoint, name) for name in names)


@pytest.mark.parametrize("name", aiocheckpoint.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    """What is public says what it promises."""
    doc = inspect.getdoc(getattr(aiocheckpoint, name))
    assert doc
    assert doc.split("\n")[0].rstrip().endswith((".", ":", ",")) or "\n" in doc


@pytest.mark.parametrize(
    "of",
    [Checkpointer, blocking.Checkpointer, Runtime, RetryPolicy, Task, Keyring],
    ids=lambda c: f"{c.__module__}.{c.__name__}",
)
def test_every_public_method_has_a_docstring(of: type) -> None:
    """So does each method and property."""
    members: dict[str, Any] = {
        name: member for name, member in vars(of).items() if not name.startswith("_")
    }
    bare = [
        name
        for name, member in members.items()
        if (callable(member) or isinstance(member, property)) and not inspect.getdoc(member)
    ]
    assert bare == []


def test_errors_are_one_tree() -> None:
    """Our own errors have one root; the two that users raise stand outside of it."""
    for name, parent in TREE.items():
        assert getattr(aiocheckpoint, name).__bases__[0] is parent, name
    assert issubclass(aiocheckpoint.FlushTimeoutError, TimeoutError)
    assert not issubclass(aiocheckpoint.RecoverableError, aiocheckpoint.CheckpointError)
    assert not issubclass(aiocheckpoint.NonRecoverableError, aiocheckpoint.CheckpointError)


@pytest.mark.parametrize(
    "error",
    [
        aiocheckpoint.StoreError("no", op="commit", key="k"),
        aiocheckpoint.StoreUnavailableError("no", op="load"),
        aiocheckpoint.FlushTimeoutError("late", key="k", staged=2, stored=1),
        aiocheckpoint.RecoverableError("again", retry_after=3),
        aiocheckpoint.FencedError("fenced"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error: Exception) -> None:
    """An error crosses a process boundary whole, as process pools need."""
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_store_errors_say_where() -> None:
    """A store's error says the operation, the key and what is wrong."""
    error = aiocheckpoint.StoreError("disk full", op="commit", key="k")
    assert str(error) == "commit 'k': disk full"
    assert str(aiocheckpoint.StoreUnavailableError("gone", op="keys")) == "keys: gone"


def test_version_is_one() -> None:
    """`__version__` is the version that is installed, where it is installed."""
    try:
        installed = version("aiocheckpoint")
    except ModuleNotFoundError:
        pytest.skip("aiocheckpoint runs from its source here and is not installed")
    assert aiocheckpoint.__version__ == installed


def test_importing_is_cheap() -> None:
    """Importing the package imports no store, no other event loop and no extra."""
    script = run_script(
        """
import sys, aiocheckpoint
from aiocheckpoint import *
names = {name for name in sys.modules}
stores = {name for name in names if name.startswith("aiocheckpoint.stores.")}
print(sorted(stores))
roots = {name.partition(".")[0] for name in names}
heavy = {"trio", "uvloop", "rich", "sqlite3", "aiobotocore", "obstore", "redis", "psycopg",
         "pytest", "hypothesis", "uvicorn", "pickle5", "cryptography", "zstandard"}
print(sorted(roots & heavy), "aiocheckpoint.testing" in names)
print(open is aiocheckpoint.open)
"""
    )
    stores, heavy, opened = script.stdout.splitlines()
    assert stores == "[]"
    assert heavy == "[] False"
    assert opened == "True"


def test_importing_starts_nothing() -> None:
    """Importing the package starts no thread and writes nothing."""
    run_script(
        """
import os, threading
before = os.listdir(".")
import aiocheckpoint
assert threading.active_count() == 1
assert os.listdir(".") == before
"""
    )


@pytest.mark.parametrize("extra", ["trio", "uvloop"])
def test_a_missing_extra_names_its_install(extra: str) -> None:
    """A backend that is not installed is an error that says how to install it."""
    script = run_script(
        """
import sys
name = sys.argv[1]
sys.modules[name] = None
import aiocheckpoint

async def job(cp):
    return 1

try:
    aiocheckpoint.run(job, store="memory:", key="k", backend=name)
except ImportError as exc:
    print(exc)
else:
    print("ran")
""",
        extra,
    )
    assert f"aiocheckpoint[{extra}]" in script.stdout
