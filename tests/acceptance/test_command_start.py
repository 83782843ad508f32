"""A command that reads starts quickly: it imports what it needs, and no more."""

import resource
import subprocess
import sys

from tests.processes import COMMAND, environment

# None of these is needed to read the SQLite database; together they take longer than all the rest.
HEAVY = {"alembic", "asyncpg", "httpx2", "prometheus_client", "starlette", "uvicorn"}
IMPORTED = """
import sys
from receiver.cli import main

code = main(["messages", "list"])
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
raise SystemExit(code)
"""


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = environment() | {"RECEIVER_DATABASE_URL": url}
    return subprocess.run([sys.executable, *arguments], env=settings, capture_output=True, text=True, check=True)


def test_messages_list_imports_no_server_and_no_other_driver(sqlite_url: str) -> None:
    found = run(sqlite_url, "-c", IMPORTED)
    assert found.stdout.startswith("TIME")
    assert HEAVY & set(found.stderr.split()) == set()


# What any program of these libraries has to import: about two thirds of the command.
LIBRARIES = "import pydantic_settings, sqlalchemy.ext.asyncio, sqlmodel, structlog, typer"


def test_messages_list_takes_little_more_cpu_than_its_libraries(sqlite_url: str) -> None:
    def used(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(sqlite_url, *arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Others on the machine make a single ratio larger, and smaller only by chance: one of ten is enough.
    ratios: list[float] = []
    while len(ratios) < 10 and (not ratios or min(ratios) >= 1.65):
        ratios.append(used(str(COMMAND), "messages", "list") / used("-c", LIBRARIES))
    assert min(ratios) < 1.65
