"""The files of others that the pages load are those of the versions that are named beside them, with their licences."""

import hashlib
import re
from pathlib import Path

import receiver.pages

STATIC = Path(receiver.pages.__file__).with_name("static")
OWN = {"chart.js", "icon.svg", "pages.css", "pages.js"}
LISTED = dict(
    re.findall(r"^\| `([\w.]+)` \|.*\| `([0-9a-f]{64})` \|$", (STATIC / "VENDORED.md").read_text("utf-8"), re.MULTILINE)
)


def test_every_file_of_others_is_listed_with_its_hash() -> None:
    vendored = {file.name for file in STATIC.iterdir() if file.suffix != ".md"} - OWN
    assert vendored == LISTED.keys()
    for name, digest in LISTED.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest, name


def test_the_licences_are_there() -> None:
    text = (STATIC / "VENDORED.md").read_text("utf-8")
    assert "Zero-Clause BSD" in text
    assert "Permission is hereby granted, free of charge" in text
