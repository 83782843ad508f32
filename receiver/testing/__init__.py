"""Tests for a sink of one's own: say where it publishes to, and run what our own sinks pass.

    from receiver.testing import Place, SinkConformance

    class TestMySink(SinkConformance):
        @pytest.fixture
        async def place(self, tmp_path):
            file = tmp_path / "events"
            yield Place(settings={"type": "my_sinks:MySink", "path": str(file)}, arrived=lambda: ids_in(file))

Needs pytest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Place", "SinkConformance", "publications"]

if TYPE_CHECKING:
    from receiver.testing.conformance import SinkConformance
    from receiver.testing.events import publications
    from receiver.testing.harness import Place
else:
    _MODULES = {"Place": "harness", "SinkConformance": "conformance", "publications": "events"}

    def __getattr__(name: str) -> Any:
        """Imports what is asked for, not before: pytest loads this package in every run, whatever it is to test."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
