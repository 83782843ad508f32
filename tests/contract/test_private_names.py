"""No private name of a library is used: such a name may be gone in its next patch release."""

import ast
from collections.abc import Iterator
from pathlib import Path

import receiver

SOURCE = Path(receiver.__file__).parent
# Documented in spite of their underscore.
DOCUMENTED = {"_mapping", "_replace", "_exit"}


def private_names(text: str) -> Iterator[tuple[int, str]]:
    """The lines that reach for a private name of something else than their own object or module."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name, lineno=line) if name.startswith("_") and not name.endswith("__"):
                if name not in DOCUMENTED:
                    yield line, name
            case ast.ImportFrom(module=module, names=names, lineno=line) if not (module or "").startswith("receiver"):
                parts = [*(module or "").split("."), *(one.name for one in names)]
                yield from ((line, part) for part in parts if part.startswith("_") and not part.endswith("__"))


def test_only_public_names_of_libraries_are_used() -> None:
    found = {
        f"{path.relative_to(SOURCE)}:{line}": name
        for path in SOURCE.rglob("*.py")
        for line, name in private_names(path.read_text("utf-8"))
    }
    assert found == {}


def test_private_names_are_found() -> None:
    assert [name for _, name in private_names("from a._b import c\nself._own\nself.client._conns\nx._y")] == [
        "_b",
        "_conns",
        "_y",
    ]
