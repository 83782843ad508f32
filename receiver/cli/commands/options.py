"""Options and arguments of several commands."""

from pathlib import Path
from typing import Annotated

import typer

from receiver.domain.events import Api


def group(help: str) -> typer.Typer:  # noqa: A002
    # Importing rich takes longer than importing everything else.
    return typer.Typer(
        help=help,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The TOML file with settings; default: RECEIVER_CONFIG, else ./receiver.toml."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Size = Annotated[int, typer.Option(min=1, max=1000, help="The number of rows on a page.")]
Page = Annotated[int, typer.Option(min=0, help="The number of the page, from 0.")]
OldestFirst = Annotated[bool, typer.Option("--oldest-first", help="Oldest first; default: newest first.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="From this time on: yyyy-MM-dd hh:mm:ss or RFC 3339.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Before this time.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, only count.")]
SinkName = Annotated[str, typer.Argument(metavar="SINK", help="The name of the sink.")]
ApiVersion = Annotated[Api | None, typer.Option("--api", help="The version of Bandwidth's API: v1 (Catapult) or v2.")]
Sender = Annotated[str | None, typer.Option("--from", metavar="NUMBER", help="The number of the sender.")]
Recipients = Annotated[
    list[str] | None, typer.Option("--to", metavar="NUMBER", help="The number of a recipient; may be repeated.")
]
