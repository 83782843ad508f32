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
    """Anything `receiver` refuses with a sentence made for people."""


class SettingsError(ReceiverError):
    """A setting is wrong, unknown or missing."""


class SchemaError(ReceiverError):
    """The database's schema is not the one this version works with."""


class StorageUnavailable(ReceiverError):
    """The database could not commit now; nothing was stored."""


class JournalFull(ReceiverError):
    """More callbacks wait for their commit than the journal lets wait; nothing was stored."""


class Unknown(ReceiverError):
    """There is nothing of this name or with this id."""


class Conflict(ReceiverError):
    """It cannot be done as things stand."""


class Expired(ReceiverError):
    """What was asked for is no longer kept."""
