"""Randomness for layers that must not take it from the air: from a seed that is handed in, so that
tests, and repetitions of a call, see the same numbers."""

from __future__ import annotations

from random import Random  # noqa: TID251  the one place; `seeded` is the way

__all__ = ["Random", "seeded"]


def seeded(seed: str) -> Random:
    """A generator whose numbers follow from the seed alone. Not for secrets."""
    return Random(seed)
