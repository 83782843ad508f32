"""Signing and checking tags."""

from typing import Annotated

import typer

from receiver.cli.commands.options import Config, Json, Recipients, Sender, group

app = group("Sign and check the tags of messages.")


@app.command("sign")
def tag_sign(
    value: Annotated[str, typer.Argument(help="What the tag shall say.")],
    sender: Sender = None,
    to: Recipients = None,
    kid: Annotated[str | None, typer.Option(help="The id of the key; else the first one.")] = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Sign a tag. With --from or --to it is worthless for a message with other numbers."""
    from receiver.cli.tag import sign

    return sign(config, value, sender=sender, recipients=to, kid=kid, json=json)


@app.command("verify")
def tag_verify(
    tag: Annotated[str, typer.Argument(help="The whole tag, signature included.")],
    sender: Sender = None,
    to: Recipients = None,
    kid: Annotated[str | None, typer.Option(help="The id of the only key to accept; else all are.")] = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Check a tag.

    As an event with these numbers is checked; exit code 1 if it is not valid.
    """
    from receiver.cli.tag import verify

    return verify(config, tag, sender=sender, recipients=to, kid=kid, json=json)
