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


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How many seconds a search may take: as a whole, and, if that was not enough, in spans of time; and one span.

    `whole_again`: the time for the whole is too short for a cold cache, so the next call tries the rest as a whole.
    """

    whole: float
    in_spans: float
    one_span: float = 1.0
    whole_again: bool = False


# An index finds what few messages have within this time, even from a cold cache; spans would read all messages.
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


# Of ten million messages in three months this span has 28,000, which PostgreSQL reads in 30 ms.
_FIRST_SPAN: Final = timedelta(hours=6)
_SHORTEST_SPAN: Final = timedelta(seconds=1)
# A span is at most so many times as long, or as short, as the span before it.
_CHANGE: Final = 4


async def search(
    database: Database,
    query: MessageQuery,
    patience: Patience = FOR_PROGRAMS,
    monotonic: Callable[[], float] = time.monotonic,
) -> Found:
    """A page of the messages that match a query. It is full unless the list or the patience ends before.

    Raises TooSlow if even the shortest span takes too long, or a page that is given by its number.
    """
    if query.skip or query.after is None or query.after.span is None:
        try:
            page = await messages.find(database, query, None if query.skip else patience.whole)
        except TooSlow:
            if query.skip:
                # Spans would have to find all messages before the page, in this call and in the next one.
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
    place, rest = query.after, times.after(query.after)
    span = place.span if place is not None and place.span is not None else _FIRST_SPAN
    items: list[MessageRead] = []
    begun = monotonic()
    while True:
        span = max(min(span, rest.length), _SHORTEST_SPAN)
        part, following = rest.split(span)
        of_part = part.narrowed(query).model_copy(update={"after": place, "size": query.size - len(items)})
        is_shortest = span == _SHORTEST_SPAN
        limit = None if is_shortest and patience.in_spans == inf else patience.one_span
        started = monotonic()
        try:
            page = await messages.find(database, of_part, limit)
        except TooSlow:
            if is_shortest and not items:
                raise
            span, took = span / _CHANGE, 0.0
        else:
            items += page.items
            if page.more:
                return Found(items=items, after=replace(items[-1].place, span=span))
            if following is None:
                return Found(items=items, after=None)
            rest, place, is_shortest = following, None, False
            took = monotonic() - started
            span = _next_span(span, took, aim=min(patience.in_spans, patience.one_span) / 2)
        # The next span takes about as long as the span before it.
        if is_shortest or len(items) == query.size or monotonic() - begun + took > patience.in_spans:
            reached = place or MessagePlace.at(rest.begin)
            is_full = len(items) == query.size
            return Found(
                items=items,
                after=replace(reached, span=None if patience.whole_again and not is_full else span),
                searched_to=None if is_full else rest.begin,
                share=times.share_before(rest),
            )


def _next_span(span: timedelta, took: float, aim: float) -> timedelta:
    """The length of the next span, which shall take `aim` seconds, after a span of this length took so many.

    Spans up to `_FIRST_SPAN` are not shortened: most of what they take is the cost of any statement.
    """
    factor = min(max(aim / max(took, 1e-6), 1 / _CHANGE), _CHANGE)
    return span * factor if factor > 1 else max(span * factor, min(span, _FIRST_SPAN))


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
