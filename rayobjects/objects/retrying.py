"""How often, and after which pauses, a method that raised is called again by a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from rayobjects.randomness import Random

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__rayobjects_retries__"


class Retries(msgspec.Struct, frozen=True):
    """The policy: `max_attempts` calls after the first, the first of them after `first_s`, each
    pause `factor` times as long as the one before and at most `longest_s`, give or take a quarter,
    so that what failed together does not come again together."""

    max_attempts: int = 6
    first_s: float = 2.0
    factor: float = 2.0
    longest_s: float = 3_600.0
    jitter: float = 0.25

    def pause_s(self, attempt: int, random: Random) -> float:
        """The pause before the `attempt`-th repetition, 1 for the first."""
        pause_s = min(self.longest_s, self.first_s * self.factor ** min(attempt - 1, 100))
        return pause_s * random.uniform(1 - self.jitter, 1 + self.jitter)


DEFAULT = Retries()


def retries(
    max_attempts: int,
    *,
    first_s: float = DEFAULT.first_s,
    factor: float = DEFAULT.factor,
    longest_s: float = DEFAULT.longest_s,
) -> Callable[[F], F]:
    """Says how often schedules repeat a method that raises, before they give up and list it.

    Args:
        max_attempts: repetitions after the first call; 0 for none.
        first_s: seconds before the first repetition.
        factor: how many times longer each further pause is.
        longest_s: no pause is longer.

    Raises:
        TypeError: there is no number, as in `@ro.retries` without parentheses.
        ValueError: a number is out of its range.
    """
    if isinstance(max_attempts, bool) or not isinstance(max_attempts, int):
        raise TypeError(
            "retries takes how often, as in `@ro.retries(3)`, and 0 for never: not "
            f"{max_attempts!r}"
        )
    if max_attempts < 0 or first_s < 0 or factor < 1 or longest_s < first_s:
        raise ValueError(
            "retries needs max_attempts >= 0, first_s >= 0, factor >= 1 and longest_s >= first_s"
        )
    policy = Retries(max_attempts, first_s, factor, longest_s)

    def mark(function: F) -> F:
        setattr(function, _MARK, policy)
        return function

    return mark


def retries_of(function: object) -> Retries:
    """The policy of a method."""
    policy = getattr(function, _MARK, DEFAULT)
    return policy if isinstance(policy, Retries) else DEFAULT
