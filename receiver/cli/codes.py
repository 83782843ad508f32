"""`receiver codes`: all delivery codes as a table, or what is known of one code."""

from pathlib import Path

from receiver.cli.calls import Operations, named, with_operations, write_list
from receiver.cli.output import code_fields, echo_fields, echo_json
from receiver.errors import Unknown
from receiver.models.queries import CodeQuery


def codes(config: Path | None, query: CodeQuery, *, code: str | None, json: bool) -> int:
    operation = named("reference.listCodes")

    async def work(perform: Operations) -> int:
        found = await perform(operation, query=query.model_copy(update={"size": _ALL}))
        if code is None:
            write_list(operation, found, json=json)
            return 0
        entries = [entry for entry in found.items if str(entry.code) == code]
        if not entries:
            raise Unknown(f"Bandwidth's documents list no code {code}")
        if json:
            echo_json(entries)
        else:
            for entry in entries:
                echo_fields(code_fields(entry))
        return 0

    return with_operations(config, work, needs_database=False)


# More than the documents list.
_ALL = 1000
