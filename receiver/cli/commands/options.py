"""Options and arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from receiver.domain.events import Api


def group(help: str) -> typer.Typer:  # noqa: A002
    # rich would cost more to import than all the rest
    return typer.Typer(
        help=help,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Settings as TOML; else RECEIVER_CONFIG, else ./receiver.toml.")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Size = Annotated[int, typer.Option(min=1, max=1000, help="How many on a page.")]
Page = Annotated[int, typer.Option(min=0, help="Which page, from 0.")]
OldestFirst = Annotated[bool, typer.Option("--oldest-first", help="Else the newest come first.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="From this time on: yyyy-MM-dd hh:mm:ss or RFC 3339.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Before this time.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, count.")]
SinkName = Annotated[str, typer.Argument(metavar="SINK", help="The sink's name.")]
ApiVersion = Annotated[Api | None, typer.Option("--api", help="The generation of Bandwidth's API.")]
Sender = Annotated[str | None, typer.Option("--from", metavar="NUMBER", help="The sender's number.")]
Recipients = Annotated[
    list[str] | None, typer.Option("--to", metavar="NUMBER", help="A recipient's number; may be repeated.")
]
