"""The sink `memory`, for tests: it stores the events in a list and returns the results that the test sets."""

from collections import deque
from collections.abc import Callable, Sequence

from receiver.sinks.base import Publication, Published, Result, Sink, SinkSettings


class MemorySink(Sink):
    """Stores published events in `published` and the event of every attempt in `attempted`.

    `return_next` sets the results of the next events. After those, `answer` decides; unless replaced, it returns
    Published for every event.
    """

    concurrency = 8

    def __init__(self, settings: SinkSettings) -> None:
        self.published: list[Publication] = []
        self.attempted: list[Publication] = []
        self.answer: Callable[[Publication], Result] = lambda _: Published()
        self._next_results: deque[Result] = deque()

    def return_next(self, *results: Result) -> None:
        """Sets the results of the next events, one per event."""
        self._next_results.extend(results)

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        return [self._result(publication) for publication in batch]

    def _result(self, publication: Publication) -> Result:
        result = self._next_results.popleft() if self._next_results else self.answer(publication)
        self.attempted.append(publication)
        if isinstance(result, Published):
            self.published.append(publication)
        return result
