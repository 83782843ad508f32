"""The errors `receiver` raises on purpose, as a tree.

ReceiverError
├── SettingsError       a setting is wrong, unknown or missing: the start is refused with this line
├── SchemaError         the database's schema is not the one this version works with
├── StorageUnavailable  the database could not commit now; the same work may succeed later
├── JournalFull         more callbacks wait for their commit than the journal lets wait
├── Unknown             there is nothing of this name or with this id
├── Conflict            it cannot be done as things stand
└── Expired             what was asked for is no longer kept
"""


class ReceiverError(Exception):
    """Anything `receiver` refuses with a sentence made for people; `topic` of the documentation says more about it."""

    topic: str | None = None

    def __init__(self, *arguments: object, topic: str | None = None) -> None:
        super().__init__(*arguments)
        self.topic = topic or self.topic


class SettingsError(ReceiverError):
    """A setting is wrong, unknown or missing."""


class SchemaError(ReceiverError):
    """The database's schema is not the one this version works with."""

    topic = "backup-upgrade"


class StorageUnavailable(ReceiverError):
    """The database could not commit now; nothing was stored."""

    topic = "troubleshooting"


class JournalFull(ReceiverError):
    """More callbacks wait for their commit than the journal lets wait; nothing was stored."""


class Unknown(ReceiverError):
    """There is nothing of this name or with this id."""


class Conflict(ReceiverError):
    """It cannot be done as things stand."""


class Expired(ReceiverError):
    """What was asked for is no longer kept."""


def see(topic: str | None) -> str:
    """The end of an error line: where the documentation says more, if there is such a topic."""
    return f" (see: receiver help {topic})" if topic else ""


def line(error: Exception) -> str:
    """An error as one line for people. Further lines of a foreign error may repeat the data that was handled."""
    return str(error).partition("\n")[0] + see(getattr(error, "topic", None))
