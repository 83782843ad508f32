"""Conformance tests for a sink of your own: define its target, and run the tests that the built-in sinks pass.

    from receiver.testing import SinkConformance, SinkTarget

    class TestMySink(SinkConformance):
        @pytest.fixture
        async def target(self, tmp_path):
            file = tmp_path / "events"
            yield SinkTarget(settings={"type": "my_sinks:MySink", "path": str(file)}, arrived=lambda: ids_in(file))

It needs pytest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["SinkConformance", "SinkTarget", "publications"]

if TYPE_CHECKING:
    from receiver.testing.conformance import SinkConformance
    from receiver.testing.dispatch import publications
    from receiver.testing.harness import SinkTarget
else:
    _MODULES = {"SinkTarget": "harness", "SinkConformance": "conformance", "publications": "dispatch"}

    def __getattr__(name: str) -> Any:
        """Imports a name when it is first used: pytest loads this package in every run, whatever it tests."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
