"""The tests of the conformance kit that take seconds for each sink have the marker `slow`."""

import pytest

_LONG = {"test_a_frozen_target_does_not_harm_other_sinks", "test_sink_down_under_load_loses_nothing"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and item.path.name == "test_sinks.py" and item.originalname in _LONG:
            item.add_marker(pytest.mark.slow)
