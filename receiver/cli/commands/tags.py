"""The commands `receiver tag …`."""

from typing import Annotated

import typer

from receiver.cli.commands.options import Config, Json, Recipients, Sender, group

app = group("Sign and verify the tags of messages.")


@app.command("sign")
def tag_sign(
    value: Annotated[str, typer.Argument(help="The value of the tag.")],
    sender: Sender = None,
    to: Recipients = None,
    kid: Annotated[str | None, typer.Option(help="The id of the key; default: the first key.")] = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Sign a tag. With --from or --to the tag is valid only for a message with these numbers."""
    from receiver.cli.tag import sign

    return sign(config, value, sender=sender, recipients=to, kid=kid, json=json)


@app.command("verify")
def tag_verify(
    tag: Annotated[str, typer.Argument(help="The whole tag, with its signature.")],
    sender: Sender = None,
    to: Recipients = None,
    kid: Annotated[str | None, typer.Option(help="The id of the only key to accept; default: all keys.")] = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Verify a tag as in an event with these numbers. Exit code 1 if it is not valid."""
    from receiver.cli.tag import verify

    return verify(config, tag, sender=sender, recipients=to, kid=kid, json=json)
