"""Searches of messages that take long: in spans of time, so that a page ends in time, and the next one goes on there.

For every filter an index gives the matches in the order of the list. Of two filters that have a million matches each
and none together PostgreSQL reads a million rows, which takes seconds; a span of time has few of them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import inf
from typing import Final

from receiver.errors import TooSlow
from receiver.models.message_queries import MessageQuery
from receiver.models.messages import MessageRead
from receiver.models.parameters import MessagePlace
from receiver.models.queries import SortOrder
from receiver.storage import messages
from receiver.storage.database import Database
from receiver.storage.postgresql import STATEMENT_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How many seconds a search may take: as a whole, and, if that was not enough, in spans of time.

    `whole_again`: that was too short for a cold cache, so the next call tries the rest as a whole again.
    """

    whole: float
    in_spans: float
    whole_again: bool = False


# What one index serves takes less as a whole, even from a cold cache. Most of what takes more is found sooner in spans.
_WHOLE_SECONDS: Final = 1.0
FOR_PROGRAMS: Final = Patience(whole=_WHOLE_SECONDS, in_spans=3.0)
UNLIMITED: Final = Patience(whole=_WHOLE_SECONDS, in_spans=inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The matches that a search found, and the place after which it goes on (None: there are no more).

    `searched_to` is set if the patience ended before the page was full: the search has got to this time. `share` is
    the part of the searched times that it has behind it, from 0 to 1.
    """

    items: list[MessageRead]
    after: MessagePlace | None
    searched_to: datetime | None = None
    share: float = 1.0


# What ten million messages in three months have in it can be read in some 30 ms.
_FIRST_SPAN: Final = timedelta(hours=6)
_SHORTEST_SPAN: Final = timedelta(seconds=1)
_LONGEST_SPAN: Final = timedelta(days=100_000)
# How much longer or shorter a span may be than the one before.
_CHANGE: Final = 4
# A span shall take half of this, and is searched again as a shorter one if it takes longer.
_MOST_SPAN_SECONDS: Final = 1.0


async def search(
    database: Database,
    query: MessageQuery,
    patience: Patience = FOR_PROGRAMS,
    monotonic: Callable[[], float] = time.monotonic,
) -> Found:
    """A page of the messages that match a query. It is full unless the list or the patience ends before.

    Raises TooSlow if no span can be searched, and if the patience ends before a page that is given by its number.
    """
    if query.after is None or query.after.span is None:
        try:
            page = await messages.find(database, query, None if query.skip else patience.whole)
        except TooSlow:
            # The next call would have to find again what is before the page.
            if query.skip and patience.in_spans != inf:
                raise
        else:
            return Found(items=page.items, after=page.items[-1].place if page.more else None)
    ends = await messages.ends(database)
    if ends is None:
        return Found(items=[], after=None)
    return await _in_spans(database, query, Range.of(query, *ends), patience, monotonic)


async def _in_spans(
    database: Database, query: MessageQuery, times: "Range", patience: Patience, monotonic: Callable[[], float]
) -> Found:
    rest = times.after(query.after)
    span = query.after.span if query.after is not None and query.after.span is not None else _FIRST_SPAN
    most_seconds = min(patience.in_spans, _MOST_SPAN_SECONDS)
    wanted = query.skip + query.size
    items: list[MessageRead] = []
    begun = ended = monotonic()
    while True:
        span = min(max(span, _SHORTEST_SPAN), _LONGEST_SPAN)
        part, following = rest.split(span)
        of_part = part.narrowed(query).model_copy(update={"page": 0, "size": wanted - len(items)})
        started = monotonic()
        try:
            page = await messages.find(database, of_part, most_seconds)
        except TooSlow:
            if span == _SHORTEST_SPAN or monotonic() - ended > STATEMENT_SECONDS:
                raise
            span /= _CHANGE
            continue
        ended = monotonic()
        items += page.items
        if page.more or len(items) == wanted:
            return Found(items=items[query.skip :], after=replace(items[-1].place, span=span))
        if following is None:
            return Found(items=items[query.skip :], after=None)
        rest, query = following, query.model_copy(update={"after": None})
        span *= min(max(most_seconds / 2 / max(ended - started, 1e-6), 1 / _CHANGE), _CHANGE)
        # The next span takes as long as this one, or longer.
        if ended - begun + (ended - started) > patience.in_spans:
            if query.skip:
                raise TooSlow("the search takes too long to count pages: follow the links from the first page")
            return Found(
                items=items,
                after=MessagePlace.at(rest.begin, None if patience.whole_again else span),
                searched_to=rest.begin,
                share=times.share_before(rest),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The times of a list from where it begins to where it ends: in a list with the newest first, backwards.

    The earlier of both is included and the later is not, whatever the order.
    """

    begin: datetime
    end: datetime
    order: SortOrder

    @classmethod
    def of(cls, query: MessageQuery, oldest: datetime, newest: datetime) -> "Range":
        """The times in which a query can have matches."""
        since = max(filter(None, (query.since, oldest)))
        until = min(filter(None, (query.until, query.older_than, _just_after(newest))))
        if query.order is SortOrder.ASC:
            return cls(begin=since, end=until, order=query.order)
        return cls(begin=until, end=since, order=query.order)

    def after(self, place: MessagePlace | None) -> "Range":
        """What is left after a place of the list."""
        if place is None:
            return self
        if self.order is SortOrder.ASC:
            return replace(self, begin=max(self.begin, place.listed_at))
        return replace(self, begin=min(self.begin, _just_after(place.listed_at)))

    def split(self, span: timedelta) -> "tuple[Range, Range | None]":
        """The first part, of this length, and the rest; None if nothing is left."""
        if self.length <= span:
            return self, None
        edge = self.begin + (span if self.order is SortOrder.ASC else -span)
        return replace(self, end=edge), replace(self, begin=edge)

    def narrowed(self, query: MessageQuery) -> MessageQuery:
        """The query for what of it lies in these times; nothing does where they end before they begin."""
        since, until = (self.begin, self.end) if self.order is SortOrder.ASC else (self.end, self.begin)
        return query.model_copy(update={"since": since, "until": until, "older_than": None})

    def share_before(self, rest: "Range") -> float:
        """The part of this range that lies before the rest of it."""
        return 1 - rest.length / self.length if self.length > timedelta(0) else 1.0

    @property
    def length(self) -> timedelta:
        return self.end - self.begin if self.order is SortOrder.ASC else self.begin - self.end


def _just_after(moment: datetime) -> datetime:
    microsecond = timedelta(microseconds=1)
    return min(moment, datetime.max.replace(tzinfo=moment.tzinfo) - microsecond) + microsecond
