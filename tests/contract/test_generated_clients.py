"""The OpenAPI document gives generators typed events: what they make is used here as a consumer would."""

import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from receiver.api import openapi
from receiver.api.routes import GROUPS
from receiver.cli.events import sample_event

pytestmark = pytest.mark.slow

EVENT = orjson.loads(orjson.dumps(sample_event("message.failed")))


def run(folder: Path, *command: str | Path) -> str:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def installed(folder: Path, *command: str | Path) -> None:
    """Runs an installer; skips the test where its registry cannot be reached."""
    try:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{Path(command[0]).name} does not install: {type(error).__name__}")
    if ran.returncode:
        pytest.skip(f"{Path(command[0]).name} does not install: {(ran.stderr.strip().splitlines() or ['?'])[-1][:200]}")


@pytest.fixture
def document(tmp_path: Path) -> Path:
    file = tmp_path / "openapi.json"
    file.write_bytes(orjson.dumps(openapi.document(GROUPS, "0")))
    return file


PYTHON = """
import json, sys
from receiver_client import AuthenticatedClient
from receiver_client.api.events import pull_events
from receiver_client.models import CloudEvent, MessageEventData

event: CloudEvent = CloudEvent.from_dict(json.loads(sys.argv[1]))
data: MessageEventData = event.data
code: int | None = data.delivery_code
recipients: list[str] = data.to
retry: bool | None = data.reason.retryable if data.reason is not None else None
print(event.type_, data.status.value, code, data.previous_status, recipients, retry, event.time.year)


def pull(client: AuthenticatedClient) -> list[str]:
    pulled = pull_events.sync(client=client, after=5)
    if not isinstance(pulled, list):
        return []
    return [one.data.message_id for one in pulled if isinstance(one.data, MessageEventData)]
"""


def test_openapi_python_client_makes_typed_events(document: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    run(tmp_path, sys.executable, "-m", "venv", environment)
    python = environment / "bin/python"
    installed(tmp_path, python, "-m", "pip", "install", "-q", "openapi-python-client>=0.29,<0.30")
    client = tmp_path / "receiver_client"
    generator = environment / "bin/openapi-python-client"
    run(tmp_path, generator, "generate", "--path", document, "--output-path", client, "--meta", "none")
    (tmp_path / "use.py").write_text(PYTHON, "utf-8")
    printed = run(tmp_path, python, "use.py", orjson.dumps(EVENT).decode())
    assert printed == "message.failed failed 4720 None ['+19195554321'] False 2026\n"
    run(
        tmp_path,
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-warn-redundant-casts",
        "--python-executable",
        python,
        "use.py",
    )


TYPESCRIPT = """
import type { components, paths, webhooks } from "./receiver";

type Event = components["schemas"]["CloudEvent"];
type Pulled = paths["/api/events"]["get"]["responses"][200]["content"]["application/cloudevents-batch+json"];
type Posted = webhooks["messageEvent"]["post"]["requestBody"]["content"]["application/cloudevents+json"];

const event: Event = EVENT;
export const same: Posted = event;
export const status: "failed" | string = event.data.status;
export const code: number | null = event.data.deliveryCode;
export const sequences = (pulled: Pulled): number[] =>
  pulled.flatMap((one) => ("sequence" in one.data ? [one.data.sequence] : []));
// @ts-expect-error there is no such status
export const wrong: Event["data"]["status"] = "lost";
"""


def test_openapi_typescript_makes_typed_events(document: Path, tmp_path: Path) -> None:
    if (npm := shutil.which("npm")) is None:
        pytest.skip("there is no npm")
    packages = ("openapi-typescript@7", "typescript@5")
    quick = ("--fetch-retries=0", "--fetch-timeout=30000", "--no-audit", "--no-fund", "--silent")
    installed(tmp_path, npm, "install", *quick, "--prefix", tmp_path, *packages)
    tools = tmp_path / "node_modules/.bin"
    run(tmp_path, tools / "openapi-typescript", document, "-o", tmp_path / "receiver.ts")
    (tmp_path / "use.ts").write_text(TYPESCRIPT.replace("= EVENT", f"= {orjson.dumps(EVENT).decode()}"), "utf-8")
    strict = ("--strict", "--noEmit", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler")
    run(tmp_path, tools / "tsc", *strict, "use.ts")
