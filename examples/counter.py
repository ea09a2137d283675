"""A counter that does not forget.

python examples/counter.py                count from plain Python
rayobjects serve examples/counter.py      count over HTTP:

curl http://127.0.0.1:8000/objects/Counter/home/increment --json '{"by": 2}'

and see it change from another terminal:

curl -N -X POST http://127.0.0.1:8000/objects/Counter/home/watch -H 'Accept: text/event-stream'
"""

import asyncio
from collections.abc import AsyncIterator

import rayobjects as ro


class Counter(ro.DurableObject):
    """Counts."""

    count: int = ro.durable(0)

    def increment(self, by: int = 1) -> int:
        """Adds `by`; the answer is the new count, and by then it is on disk."""
        self.count += by
        return self.count

    def value(self) -> int:
        """The count."""
        return self.count

    @ro.concurrent
    async def watch(self) -> AsyncIterator[int]:
        """A stream of the counts, from now on; for as long as somebody reads it. It runs beside the
        other methods and sees what they have committed."""
        seen = None
        while True:
            if self.count != seen:
                seen = self.count
                yield seen
            await asyncio.sleep(0.1)


def main() -> None:
    """Counts one up and says what the count is: one more each time that you run it."""
    ro.init(storage="./rayobjects-data")
    counters = ro.deploy(Counter)
    home = counters.get("home")
    print(home.increment.remote().result())
    ro.shutdown()


if __name__ == "__main__":
    main()
