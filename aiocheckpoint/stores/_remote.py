"""What stores on other machines have in common."""

from __future__ import annotations

import hashlib
from pathlib import Path

from platformdirs import user_state_path


def spool_place(identity: str) -> Path:
    """Where this machine keeps the staged states of a store that lies elsewhere."""
    digest = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    return user_state_path("aiocheckpoint", appauthor=False) / "spool" / digest
