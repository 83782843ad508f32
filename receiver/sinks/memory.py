"""A list in memory, for tests: it records what it was given and answers as it was told."""

from collections import deque
from collections.abc import Callable, Sequence

from receiver.sinks.base import Publication, Published, Result, Sink, SinkSettings


class MemorySink(Sink):
    """Keeps what it took in `published` and every attempt in `attempted`.

    `tell` sets the results of the next events; after them `answer` is asked, which unless replaced takes everything.
    """

    concurrency = 8

    def __init__(self, settings: SinkSettings) -> None:
        self.published: list[Publication] = []
        self.attempted: list[Publication] = []
        self.answer: Callable[[Publication], Result] = lambda _: Published()
        self._told: deque[Result] = deque()

    def tell(self, *results: Result) -> None:
        self._told.extend(results)

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        return [self._result(publication) for publication in batch]

    def _result(self, publication: Publication) -> Result:
        result = self._told.popleft() if self._told else self.answer(publication)
        self.attempted.append(publication)
        if isinstance(result, Published):
            self.published.append(publication)
        return result
