"""Column types with the same meaning on SQLite and PostgreSQL, and the base of what is shown."""

from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from pydantic import AliasGenerator, BaseModel, WithJsonSchema
from pydantic.alias_generators import to_camel
from sqlalchemy import BigInteger, Column, DateTime, Dialect, Integer, String, Text, TypeDecorator
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from receiver.providers.fields import moment_text

SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def json_text(value: Any) -> str:
    """The JSON text of a value, as it is passed to the database."""
    return orjson.dumps(value).decode()


def sqlite_time(moment: datetime) -> str:
    """A time as the text that SQLite stores: 27 characters that sort chronologically."""
    if moment.tzinfo is not UTC:
        if moment.tzinfo is None:
            raise ValueError(f"a time without zone must not reach the database: {moment!r}")
        moment = moment.astimezone(UTC)
    return moment_text(moment)


class UTCDateTime(TypeDecorator[datetime]):
    """An aware UTC time: `timestamptz` on PostgreSQL, on SQLite text that sorts chronologically."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(String(27))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if dialect.name == "sqlite":
            return sqlite_time(value)
        if value.tzinfo is None:
            raise ValueError(f"a time without zone must not reach the database: {value!r}")
        return value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if dialect.name == "sqlite":
            return datetime.fromisoformat(value)
        moment: datetime = value.astimezone(UTC)
        return moment


class Json(TypeDecorator[Any]):
    """A JSON value: `jsonb` on PostgreSQL, text on SQLite. It must not contain NUL, which PostgreSQL cannot store."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(JSONB(none_as_null=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return json_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return orjson.loads(value)


Position = BigInteger().with_variant(Integer, "sqlite")


def text_column(*, primary_key: bool = False, nullable: bool = False, **field: Any) -> Any:
    """A text; `field` are the arguments of a field of pydantic, such as `serialization_alias`."""
    return Field(sa_column=Column(Text, primary_key=primary_key, nullable=nullable), **field)


def time_column(*, nullable: bool = True, **field: Any) -> Any:
    return Field(sa_column=Column(UTCDateTime, nullable=nullable), **field)


def json_column(name: str | None = None, *, nullable: bool = True, **field: Any) -> Any:
    """A JSON value; `name` is the name of the column where the field has another one."""
    return Field(sa_column=Column(name, Json, nullable=nullable) if name else Column(Json, nullable=nullable), **field)


def integer_column(*, primary_key: bool = False, nullable: bool = False, **field: Any) -> Any:
    """A number of up to 19 digits, which Bandwidth or a count can reach."""
    column = Column(BigInteger, primary_key=primary_key, autoincrement=False, nullable=nullable)
    return Field(sa_column=column, **field)


def position_column(*, primary_key: bool = False, nullable: bool = False) -> Any:
    """A position of the event log, or a number of the same range; not numbered by the database."""
    return Field(sa_column=Column(Position, primary_key=primary_key, autoincrement=False, nullable=nullable))


def serial_column() -> Any:
    """A primary key that the database numbers."""
    return Field(default=None, sa_column=Column(Position, primary_key=True, autoincrement=True))


def only_where(condition: str) -> dict[str, Any]:
    """The options of a partial index, which has only the rows that meet a condition."""
    return {"sqlite_where": sql(condition), "postgresql_where": sql(condition)}


def table_of(row: type[SQLModel]) -> Any:
    """The table of a row class, for SQLAlchemy's Core: the processor and the lists read and write rows without ORM."""
    return SQLModel.metadata.tables[str(row.__tablename__)]


def json_name(field: str) -> str:
    """The name of a field in JSON: camelCase, and times end in `Time`."""
    return to_camel(f"{field.removesuffix('_at')}_time" if field.endswith("_at") else field)


class Model(SQLModel):
    """The base of all nouns. A validator is built when it is first used: a command starts with those it needs."""

    model_config = {"defer_build": True}


class Read(Model):
    """The base of what the API, the CSV and the commands show: made from rows or from attributes."""

    model_config = {
        "frozen": True,
        "from_attributes": True,
        "alias_generator": AliasGenerator(serialization_alias=json_name),
    }
    # SQLModel's own, which only tables need, is a call of Python for each row: it took half of the time of a list.
    __init__ = BaseModel.__init__


# All times are UTC. pydantic writes them as `rfc3339` does, without a call of Python for each.
Time = Annotated[datetime, WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization")]


def shown_names(model: type[BaseModel]) -> tuple[str, ...]:
    """The names of a model's values in JSON, in their order."""
    fields = ((field.serialization_alias or name) for name, field in model.model_fields.items() if not field.exclude)
    computed = (field.alias or name for name, field in model.model_computed_fields.items())
    return (*fields, *computed)
