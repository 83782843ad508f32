"""The pytest plug-in. pytest loads it wherever `receiver` is installed, so it imports as little as possible."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from receiver.testing.sandbox import Sandbox

pytest.register_assert_rewrite("receiver.testing.conformance")


@pytest.fixture(scope="session")
def receiver_empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database. Copy it; do not open it."""
    from receiver.testing.dispatch import migrated

    return migrated(tmp_path_factory.mktemp("receiver") / "receiver.db")


@pytest.fixture
def receiver_sandbox_settings() -> Mapping[str, Any]:
    """The settings of `receiver_sandbox`. Override it to set the callback URLs."""
    return {}


@pytest.fixture
def receiver_sandbox(receiver_sandbox_settings: Mapping[str, Any]) -> Iterator["Sandbox"]:
    """A new sandbox for this test, on a free port of 127.0.0.1."""
    from receiver.testing.sandbox import running_sandbox

    with running_sandbox(**receiver_sandbox_settings) as sandbox:
        yield sandbox
