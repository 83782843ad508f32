"""`receiver tag sign` and `receiver tag verify`."""

from collections.abc import Sequence
from pathlib import Path

import typer

from receiver import tags
from receiver.cli.output import echo, echo_json
from receiver.domain.events import TagVerdict
from receiver.errors import SettingsError
from receiver.settings import load


def sign(
    config: Path | None,
    value: str,
    *,
    sender: str | None,
    recipients: Sequence[str] | None,
    kid: str | None,
    json: bool,
) -> int:
    keys = _keys(config, kid)
    kid, secret = next(iter(keys.items()))
    try:
        tag = tags.sign(value, secret, kid=kid, sender=sender, recipients=recipients or None)
    except tags.TagError as error:
        raise typer.BadParameter(str(error)) from None
    if json:
        echo_json({"tag": tag})
    else:
        echo(tag)
    return 0


def verify(
    config: Path | None,
    tag: str,
    *,
    sender: str | None,
    recipients: Sequence[str] | None,
    kid: str | None,
    json: bool,
) -> int:
    check = tags.verify(tag, _keys(config, kid), sender=sender, recipients=recipients or None)
    if json:
        echo_json({"verdict": check.verdict, "value": check.value, "kid": check.kid})
    else:
        echo(f"{check.verdict}: {check.value}")
    return 0 if check.verdict is TagVerdict.VALID else 1


def _keys(config: Path | None, kid: str | None) -> dict[str, str]:
    """The tag keys of the settings, in their order; with a kid only the key with that kid."""
    keys = tags.parse_keys(key.get_secret_value() for key in load(config).tag_keys)
    if not keys:
        raise SettingsError('set RECEIVER_TAG_KEYS, for example ["k1:secret"]')
    if kid is None:
        return keys
    if kid not in keys:
        raise typer.BadParameter(f"RECEIVER_TAG_KEYS has no key {kid}", param_hint="--kid")
    return {kid: keys[kid]}
