"""Reload of the sinks while their dispatchers run."""

from typing import Any

import pytest
from sqlalchemy import event

from receiver.domain.publication import LogEntry
from receiver.errors import StorageUnavailable
from receiver.storage.database import Database
from tests.dispatching import append, ids, life, memory, memory_sink, running
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)]


async def test_reload_keeps_old_sinks_when_the_database_is_unavailable(database: Database) -> None:
    sink, changed = memory_sink(), memory_sink(timeout="3s")
    is_away = False

    def fail(*_: Any) -> None:
        if is_away:
            raise OSError("the disk is away")

    event.listen(database.engine.sync_engine, "before_cursor_execute", fail)
    async with running(database, sink) as run:
        is_away = True
        with pytest.raises(StorageUnavailable):
            await run.dispatchers.reload([changed, memory_sink("other")])
        is_away = False
        entries = await append(database, life("a"))
        await eventually(lambda: ids(memory(sink).published) == [entry.event.id for entry in entries])
        await run.dispatchers.reload([changed])
        entries = await append(database, life("b"))
        await eventually(lambda: ids(memory(changed).published) == [entry.event.id for entry in entries])


async def test_reload_restarts_an_unchanged_sink(database: Database) -> None:
    """Files that the settings name, such as certificates, may have new content."""
    before, after = memory_sink(), memory_sink()

    entries: list[LogEntry] = []

    def are_published() -> bool:
        published = [*ids(memory(before).published), *ids(memory(after).published)]
        return published == [entry.event.id for entry in entries]

    async with running(database, before) as run:
        entries += await append(database, life("m0"))
        await eventually(are_published)
        await run.dispatchers.reload([after])
        # What comes before the restart, a moment later, is published with the old content.
        while not memory(after).published:
            entries += await append(database, life(f"m{len(entries)}"))
            await eventually(are_published)
