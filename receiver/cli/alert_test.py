"""`receiver alerts test`: sends a test alert to targets for people."""

import asyncio
from pathlib import Path

from receiver.alerts.targets import of_entry
from receiver.alerts.trial import try_targets
from receiver.api.notifications import AlertTargetTest, chosen_targets
from receiver.cli.context import read_settings
from receiver.cli.output import echo, echo_json, echo_table
from receiver.clock import now
from receiver.worker import configured_targets, target_context


def test(config: Path | None, *, to: str | None, rule: str | None, json: bool) -> int:
    """Prints a line for each target; the exit code is 1 if one did not accept."""
    settings = read_settings(config)
    if to is not None:
        chosen = [of_entry(to, target_context(settings))]
    else:
        chosen = chosen_targets(configured_targets(settings), rule)
    found = asyncio.run(try_targets(chosen, base_url=settings.base_url, now=now()))
    results = [AlertTargetTest.model_validate(result) for result in found]
    if json:
        echo_json(results)
    elif results:
        rows = [(one.target, "accepted" if one.ok else one.error, f"{one.seconds:.2f} s") for one in results]
        echo_table(("TARGET", "RESULT", "TIME"), rows)
    else:
        echo("no rule has a target for people")
    return 0 if all(result.ok for result in results) else 1
