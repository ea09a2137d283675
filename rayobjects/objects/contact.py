"""Whether a caller may still send again what it had sent.

A call that is sent again is answered from its reply, which its host keeps for FINISHED_WINDOW_S.
That is long beside any failure, during which callers try all the time; but a caller's process may
itself stand still for longer: stopped by a signal, or with a laptop's lid closed. When it goes on,
its host has dropped its channel and perhaps the replies, and would take its calls for new ones.

So a channel notes when it has last asked what the host answered. When that was asked counts, not
when the answer came: what a process finds in its sockets when it goes on is as old as its sleep.
Where more than SENT_AGAIN_WITHIN_S have passed before something is sent, by either of the clocks
(the monotonic one does not count a suspension, the other one may be set), all that had been sent
before counts as forgotten, until the host answers, in the same session, what is asked after that.
"""

from __future__ import annotations

from rayobjects.clock import Clock
from rayobjects.limits import FINISHED_WINDOW_S

SENT_AGAIN_WITHIN_S = FINISHED_WINDOW_S - 60.0
"""Less what the last answer and the next batch may have been on their way: 15 s each, in Ray."""

Moment = tuple[float, float]
"""By the monotonic clock, and by the other."""


class Contact:
    """A channel's, with its host.

    Attributes:
        forgotten_until: calls up to this number may have been forgotten; 0 for none.
    """

    def __init__(self, clock: Clock) -> None:
        self.forgotten_until = 0
        self._clock = clock
        self._at = self.now()

    def now(self) -> Moment:
        """This moment."""
        return self._clock.monotonic(), self._clock.now()

    def look(self, sent_until: int) -> None:
        """Something is about to be sent; calls up to this number have been before."""
        now, at = self.now(), self._at
        if max(now[0] - at[0], now[1] - at[1]) > SENT_AGAIN_WITHIN_S:
            self.forgotten_until, self._at = sent_until, now

    def answered(self, asked_at: Moment) -> None:
        """The host knows the session in which it was asked this."""
        if asked_at >= self._at:
            self.forgotten_until, self._at = 0, asked_at
