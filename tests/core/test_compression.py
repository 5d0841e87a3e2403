"""Compressed bodies: no more is decompressed than the limit lets through."""

from __future__ import annotations

import gzip
import tracemalloc

import pytest

from core.compression import MOST_MEMBERS, decompress
from core.problems import Problem


def test_a_bomb_takes_no_more_memory_than_the_limit_allows() -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(Problem) as caught:
            decompress(bomb, 65536)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.extra == {"limit_bytes": 65536}
    assert most < 2_000_000


def test_a_body_of_very_many_members_is_refused_at_once() -> None:
    assert decompress(gzip.compress(b"1") * MOST_MEMBERS, 100) == b"1" * MOST_MEMBERS
    with pytest.raises(Problem, match="members"):
        decompress(gzip.compress(b"") * (MOST_MEMBERS + 1), 100)


def test_members_share_the_limit() -> None:
    members = gzip.compress(b"12345") * 3
    assert decompress(members, 15) == b"12345" * 3
    with pytest.raises(Problem):
        decompress(members, 14)
