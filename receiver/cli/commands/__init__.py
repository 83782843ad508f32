"""The commands, their options and their help. A command imports its code when it runs, so that `--help` is fast."""

from receiver.cli.commands import callbacks, dead_letters, messages, sinks, tags
from receiver.cli.commands.program import app

app.add_typer(tags.app, name="tag")
app.add_typer(messages.app, name="messages")
app.add_typer(callbacks.app, name="callbacks")
app.add_typer(sinks.app, name="sinks")
app.add_typer(dead_letters.app, name="dead-letters")

__all__ = ["app"]
