"""Probing a sink of somebody else: whatever the sink does, the probe returns whether it can be reached."""

import asyncio
from typing import Any

import pytest

from receiver.sinks.registry import probe_sink
from tests.contract.test_hostile_sinks import CHECKS, ERRORS, Hostile

pytestmark = pytest.mark.anyio


class ProbedSink(Hostile):
    """A class that the settings can name; its class attributes choose what it does."""

    check_as = start_as = ""

    def __init__(self, _: Any) -> None:
        super().__init__()
        if self.start_as:
            self.failures["start"] = next(error for error in ERRORS if type(error).__name__ == self.start_as)

    async def check(self) -> Any:
        answer = CHECKS[self.check_as]()
        return await answer if asyncio.iscoroutine(answer) else answer


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("start", ["", *(type(error).__name__ for error in ERRORS)])
async def test_probe_returns_an_error_whatever_the_sink_does(
    check: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProbedSink, "check_as", check)
    monkeypatch.setattr(ProbedSink, "start_as", start)
    result = await probe_sink({"name": "x", "type": f"{__name__}:ProbedSink"}, seconds=0.1)
    assert isinstance(result.error, str)
