"""Trying out a sink of somebody else's: whatever it does, the answer is whether it can be reached."""

import asyncio
from typing import Any

import pytest

from receiver.sinks.probe import try_out
from tests.contract.test_hostile_sinks import CHECKS, ERRORS, Hostile

pytestmark = pytest.mark.anyio


class Tried(Hostile):
    """A class that the settings can name; what it does is in the table beside its name."""

    check_as = start_as = ""

    def __init__(self, _: Any) -> None:
        super().__init__()
        if self.start_as:
            self.failures["start"] = next(one for one in ERRORS if type(one).__name__ == self.start_as)

    async def check(self) -> Any:
        said = CHECKS[self.check_as]()
        return await said if asyncio.iscoroutine(said) else said


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("start", ["", *(type(error).__name__ for error in ERRORS)])
async def test_it_cannot_be_reached(check: str, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tried, "check_as", check)
    monkeypatch.setattr(Tried, "start_as", start)
    tried = await try_out({"name": "x", "type": f"{__name__}:Tried"}, seconds=0.1)
    assert isinstance(tried.error, str)
