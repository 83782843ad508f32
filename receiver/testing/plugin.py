"""What pytest loads by itself wherever `receiver` is installed: as little as can be."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from receiver.testing.sandbox import Sandbox

pytest.register_assert_rewrite("receiver.testing.conformance")


@pytest.fixture(scope="session")
def receiver_empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database to be copied, never opened."""
    from receiver.testing.dispatch import migrated

    return migrated(tmp_path_factory.mktemp("receiver") / "receiver.db")


@pytest.fixture
def receiver_sandbox_settings() -> Mapping[str, Any]:
    """What `receiver_sandbox` is like: define it anew to say where it calls back."""
    return {}


@pytest.fixture
def receiver_sandbox(receiver_sandbox_settings: Mapping[str, Any]) -> Iterator["Sandbox"]:
    """A sandbox of this test's own, on a port of this machine."""
    from receiver.testing.sandbox import running_sandbox

    with running_sandbox(**receiver_sandbox_settings) as box:
        yield box
