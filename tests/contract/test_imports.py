"""The import rules of pyproject.toml hold, and name what they are about."""

import tomllib
from pathlib import Path

import pytest
from importlinter import api
from importlinter.application import use_cases

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = ROOT / "pyproject.toml"
CONTRACTS = {contract["id"]: contract for contract in api.read_configuration(str(PYPROJECT))["contracts_options"]}


@pytest.mark.parametrize("contract", CONTRACTS)
def test_the_code_keeps_the_contract(
    contract: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # not importlinter.cli: that one silences every logger of the process
    monkeypatch.setenv("COLUMNS", "200")
    is_kept = use_cases.lint_imports(str(PYPROJECT), limit_to_contracts=(contract,), cache_dir=None, no_logo=True)
    assert is_kept, capsys.readouterr().out


def test_every_built_in_sink_is_kept_apart_from_the_others() -> None:
    entry_points = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["entry-points"]["receiver.sinks"]
    modules = {entry_point.partition(":")[0] for entry_point in entry_points.values()}
    assert set(CONTRACTS["sinks"]["modules"]) == modules
