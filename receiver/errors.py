"""The errors of `receiver`, as a tree.

ReceiverError
├── SettingsError       a setting is wrong, unknown or missing; this line ends the start
├── SchemaError         the schema of the database is not that of this version
├── StorageUnavailable  the database could not commit now; the same call may succeed later
│   └── TooSlow         a search took longer than it may
├── JournalFull         too many callbacks wait for their commit
├── Busy                something has as many users as it may have
├── Unknown             nothing has this name or id
├── Conflict            the present state does not allow the action
│   └── Ambiguous       several things have this id
├── Expired             the requested data is no longer stored
└── TooMuch             the answer would be too large
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches


class ReceiverError(Exception):
    """The base of all errors. The message is one line for people; `topic` is the documentation topic about it."""

    topic: str | None = None

    def __init__(self, *arguments: object, topic: str | None = None) -> None:
        super().__init__(*arguments)
        self.topic = topic or self.topic


class SettingsError(ReceiverError):
    """A setting is wrong, unknown or missing. `problems` has a line for each fault, the message one for the first.

    `parts` are the errors that this one consists of, each with a topic of its own.
    """

    def __init__(
        self,
        *arguments: object,
        topic: str | None = None,
        problems: Sequence[str] = (),
        parts: "Sequence[SettingsError]" = (),
    ) -> None:
        super().__init__(*arguments, topic=topic)
        self.problems = tuple(problems) or tuple(map(str, arguments))
        self.parts = tuple(parts) or (self,)


class Faults:
    """Collects the errors of several settings, so that one of them hides no others."""

    def __init__(self) -> None:
        self._found: list[SettingsError] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """An error of the block is collected, not raised."""
        try:
            yield
        except SettingsError as error:
            self._found.append(error)

    def refuse(self) -> None:
        """Raises one SettingsError with a line for each fault, if there is any."""
        if self._found:
            parts = [part for error in self._found for part in error.parts]
            problems = [problem for part in parts for problem in part.problems]
            raise SettingsError(first_of(problems), topic=parts[0].topic, problems=problems, parts=parts)


def first_of(problems: Sequence[str]) -> str:
    """The first of some lines about settings, and how many there are besides."""
    more = len(problems) - 1
    return problems[0] + (f" (and {more} more; receiver check lists all)" if more else "")


class SchemaError(ReceiverError):
    """The schema of the database is not that of this version."""

    topic = "backup-upgrade"


class StorageUnavailable(ReceiverError):
    """The database could not commit now; nothing was stored."""

    topic = "troubleshooting"


class TooSlow(StorageUnavailable):
    """A search took longer than it may. What it looks for may be too much, or the database too busy."""


class JournalFull(ReceiverError):
    """Too many callbacks wait for their commit; nothing was stored."""


class Busy(ReceiverError):
    """Something has as many users as it may have; there may be room later."""


class Unknown(ReceiverError):
    """Nothing has this name or id."""


class Conflict(ReceiverError):
    """The present state does not allow the action."""


class Ambiguous(Conflict):
    """Several things have this id. `choices` are the parameters that choose one of them, and their values."""

    def __init__(self, message: str, *, choices: Mapping[str, Sequence[str]]) -> None:
        super().__init__(message)
        self.choices = choices


class Expired(ReceiverError):
    """The requested data is no longer stored."""


class TooMuch(ReceiverError):
    """The answer would be too large; the message says how to get a smaller one."""


def did_you_mean(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """The end of an error line about an unknown name: the known name that looks most like it, if one does.

    `prefix` is what all these names begin with, and have in common with any other.
    """
    endings = [one.removeprefix(prefix) for one in known]
    # Two of three letters in common are enough: short names are mistyped too.
    found = get_close_matches(name.removeprefix(prefix), endings, n=1, cutoff=0.66)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def see(topic: str | None) -> str:
    """The end of an error line: the command that prints the documentation topic, if there is one."""
    return f" (see: receiver help {topic})" if topic else ""


def line(error: Exception) -> str:
    """An error as one line. The further lines of an error of a library may repeat the data that was processed."""
    return str(error).partition("\n")[0] + see(getattr(error, "topic", None))
