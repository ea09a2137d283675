"""A counter that does not forget.

python examples/counter.py                count from plain Python
rayobjects serve examples/counter.py      count over HTTP:

curl http://127.0.0.1:8000/objects/Counter/home/increment --json '{"by": 2}'
"""

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


def main() -> None:
    """Counts one up and says what the count is: one more each time that you run it."""
    ro.init(storage="./rayobjects-data")
    counters = ro.deploy(Counter)
    home = counters.get("home")
    print(home.increment.remote().result())
    ro.shutdown()


if __name__ == "__main__":
    main()
