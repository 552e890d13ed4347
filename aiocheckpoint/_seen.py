"""Which keys have been seen, in little more than eight bytes a key."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left

import xxhash

_BUCKETS = 1024


class Seen:
    """A set of strings that can only be added to. It keeps 64-bit digests, in sorted arrays.

    Two strings of equal digests count as one. Among a million the odds of any such pair are one
    in 37 million; the digests' seed is drawn anew for each set, so the next one is not fooled by
    the same pair.
    """

    def __init__(self) -> None:
        self._seed = int.from_bytes(os.urandom(8), "little")
        self._buckets = [array("Q") for _ in range(_BUCKETS)]

    def add(self, string: str) -> bool:
        """Add one; False if it was there."""
        digest = xxhash.xxh3_64_intdigest(string.encode(), self._seed)
        bucket = self._buckets[digest % _BUCKETS]
        at = bisect_left(bucket, digest)
        if at < len(bucket) and bucket[at] == digest:
            return False
        bucket.insert(at, digest)
        return True
