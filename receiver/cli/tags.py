"""The commands `receiver tag …`."""

from pathlib import Path
from typing import Annotated

import typer

from receiver import tags
from receiver.cli.options import Config, Json, group
from receiver.cli.output import echo, echo_json
from receiver.domain.vocabulary import TagVerdict
from receiver.errors import SettingsError

app = group("Sign and verify the tags of messages.")

Sender = Annotated[str | None, typer.Option("--from", metavar="NUMBER", help="The number of the sender.")]
Recipients = Annotated[
    list[str] | None, typer.Option("--to", metavar="NUMBER", help="The number of a recipient; may be repeated.")
]


@app.command("sign")
def sign(
    value: Annotated[str, typer.Argument(help="The value of the tag.")],
    sender: Sender = None,
    to: Recipients = None,
    kid: Annotated[str | None, typer.Option(help="The id of the key; default: the first key.")] = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Sign a tag. With --from or --to the tag is valid only for a message with these numbers."""
    kid, secret = next(iter(_keys(config, kid).items()))
    try:
        tag = tags.sign(value, secret, kid=kid, sender=sender, recipients=to or None)
    except tags.TagError as error:
        raise typer.BadParameter(str(error)) from None
    if json:
        echo_json({"tag": tag})
    else:
        echo(tag)
    return 0


@app.command("verify")
def verify(
    tag: Annotated[str, typer.Argument(help="The whole tag, with its signature.")],
    sender: Sender = None,
    to: Recipients = None,
    kid: Annotated[str | None, typer.Option(help="The id of the only key to accept; default: all keys.")] = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Verify a tag as in an event with these numbers. Exit code 1 if it is not valid."""
    check = tags.verify(tag, _keys(config, kid), sender=sender, recipients=to or None)
    if json:
        echo_json({"verdict": check.verdict, "value": check.value, "kid": check.kid})
    else:
        echo(f"{check.verdict}: {check.value}")
    return 0 if check.verdict is TagVerdict.VALID else 1


def _keys(config: Path | None, kid: str | None) -> dict[str, str]:
    """The tag keys of the settings, in their order; with a kid only the key with that kid."""
    from receiver.settings import load

    keys = tags.parse_keys(key.get_secret_value() for key in load(config).tag_keys)
    if not keys:
        raise SettingsError('set RECEIVER_TAG_KEYS, for example ["k1:secret"]')
    if kid is None:
        return keys
    if kid not in keys:
        raise typer.BadParameter(f"RECEIVER_TAG_KEYS has no key {kid}", param_hint="--kid")
    return {kid: keys[kid]}
