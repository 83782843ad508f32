"""The sinks `jsonl` and `stdout`: one line of JSON per event, appended to a file or printed."""

import asyncio
import errno
import os
import select
import stat
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from receiver.sinks.base import Publication, Published, Result, Sink, SinkDown, SinkSettings
from receiver.sinks.encoding import traced_body


def lines(batch: Iterable[Publication]) -> bytes:
    """The bodies of the events, each followed by a line feed."""
    return b"".join(traced_body(publication) + b"\n" for publication in batch)


def write_all(descriptor: int, content: bytes) -> None:
    """Writes all of the content; raises OSError when only a part could be written."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class JsonlSettings(SinkSettings):
    path: Path = Field(description="the file that events are appended to")


class JsonlSink(Sink):
    """Appends to a file, one write and one fsync per batch. After a log rotation it opens the file by name again."""

    Settings: ClassVar[type[SinkSettings]] = JsonlSettings
    max_batch = 256
    keeps_order = True

    def __init__(self, settings: JsonlSettings) -> None:
        self._path = settings.path
        self._descriptor: int | None = None
        self._writing = threading.Lock()

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        try:
            await asyncio.to_thread(self._append, lines(batch))
        except OSError as error:
            return [SinkDown(reason=error.strerror or str(error)) for _ in batch]
        return [Published() for _ in batch]

    async def check(self) -> str | None:
        try:
            await asyncio.to_thread(self._try_open)
        except OSError as error:
            return error.strerror or str(error)
        return None

    async def stop(self) -> None:
        await asyncio.to_thread(self._close)

    def _try_open(self) -> None:
        """Opens the file for appending and closes it. Writes nothing: another task may be in the middle of a line.

        It creates no file either: whoever runs `receiver check` may be another user than the one that is to write.
        """
        try:
            os.close(_open_without_links(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC))
        except FileNotFoundError:
            directory = self._path.absolute().parent
            if not stat.S_ISDIR(directory.stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
            if not os.access(directory, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None

    def _append(self, content: bytes) -> None:
        # A write that outlived its timeout still holds the lock. A second write must not wait for it in another thread.
        if not self._writing.acquire(blocking=False):
            raise BlockingIOError("the disk does not finish an earlier write")
        try:
            descriptor = self._open_current()
            write_all(descriptor, content)
            os.fsync(descriptor)
        except OSError:
            # Half a line may be written, and fsync does not report a failure twice: open the file again next time.
            self._close_descriptor()
            raise
        finally:
            self._writing.release()

    def _open_current(self) -> int:
        if self._descriptor is not None and self._is_rotated(self._descriptor):
            self._close_descriptor()
        if self._descriptor is None:
            self._descriptor = _open(self._path)
            _end_torn_line(self._descriptor)
        return self._descriptor

    def _is_rotated(self, descriptor: int) -> bool:
        try:
            return not os.path.samestat(os.fstat(descriptor), self._path.lstat())
        except FileNotFoundError:
            return True

    def _close(self) -> None:
        with self._writing:
            self._close_descriptor()

    def _close_descriptor(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _open(path: Path) -> int:
    """Opens a file for appending and creates it if it is missing."""
    descriptor = _open_without_links(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
    try:
        if not os.fstat(descriptor).st_size:
            _sync_directory(path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _open_without_links(path: Path, flags: int) -> int:
    """Opens a file that is no symbolic link: whoever may write in the folder could lead the events elsewhere."""
    try:
        # Readable by its owner only: events contain message text.
        return os.open(path, flags | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "path is a symbolic link; name the file that it leads to") from None
        raise


def _end_torn_line(descriptor: int) -> None:
    """Ends a last line that a crash left incomplete, so that the next event begins on its own line."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        write_all(descriptor, b"\n")


def _sync_directory(path: Path) -> None:
    """Syncs the directory of a new file: without it a power failure can lose the file's name."""
    directory = os.open(path.absolute().parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class StdoutSink(Sink):
    """Prints events. The sink is down when the reader has closed the pipe, and waits when the reader is slow."""

    max_batch = 256
    keeps_order = True

    def __init__(self, settings: SinkSettings) -> None:
        self._writing = threading.Lock()

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        try:
            await asyncio.to_thread(self._write, lines(batch))
        except OSError as error:
            return [SinkDown(reason=error.strerror or str(error)) for _ in batch]
        return [Published() for _ in batch]

    async def check(self) -> str | None:
        if sys.stdout.closed:
            return "standard output is closed"
        return "nobody reads standard output" if _is_broken(sys.stdout.fileno()) else None

    def _write(self, content: bytes) -> None:
        # A write that outlived its timeout still holds the lock. A second write must not wait for it in another thread.
        if not self._writing.acquire(blocking=False):
            raise BlockingIOError("the reader of standard output has stopped reading")
        try:
            sys.stdout.flush()
            write_all(sys.stdout.fileno(), content)
        finally:
            self._writing.release()


def _is_broken(descriptor: int) -> bool:
    """Whether the descriptor is a pipe or a socket whose other end is closed."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
