"""The recipes for signed tags: every one runs as the page shows it, and all of them make the same valid tag."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from receiver import tags
from receiver.domain.events import TagVerdict
from tests.pages import blocks, page

SUFFIX = {"python": ".py", "js": ".cjs", "sh": ".sh"}
COMMAND = {"python": [sys.executable], "js": ["node"], "sh": ["sh"]}
NEEDS = {"python": [], "js": ["node"], "sh": ["openssl"]}

KEYS = {"k1": "correct-horse-battery-staple"}
SENDER = "+19195551234"
RECIPIENTS = ["+19195554321", "+14255550123"]
TAG = tags.sign("order-4711", KEYS["k1"], kid="k1", sender=SENDER, recipients=RECIPIENTS)


def printed(language: str, recipe: str, folder: Path) -> str:
    script = (folder / "recipe").with_suffix(SUFFIX[language])
    script.write_text(recipe, encoding="utf-8")
    ran = subprocess.run(
        [*COMMAND[language], script], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.removesuffix("\n")


@pytest.mark.parametrize(("language", "count"), [("python", 2), ("js", 1), ("sh", 1)])
def test_each_recipe_prints_the_same_valid_tag(language: str, count: int, tmp_path: Path) -> None:
    missing = [program for program in NEEDS[language] if shutil.which(program) is None]
    found = blocks(page("tags"), language)
    assert len(found) == count
    if missing:
        pytest.skip(f"install {missing[0]} to run the {language} recipe")
    for recipe in found:
        tag = printed(language, recipe, tmp_path)
        assert tag == TAG
        check = tags.verify(tag, KEYS, sender=SENDER, recipients=RECIPIENTS)
        assert (check.verdict, check.value) == (TagVerdict.VALID, "order-4711")


def test_the_page_shows_that_tag_as_its_example() -> None:
    assert TAG in page("tags").splitlines()


def test_the_page_explains_every_verdict_and_every_policy() -> None:
    rows = set(re.findall(r"^\| `([a-z-]+)`", page("tags"), re.MULTILINE))
    assert rows == {*TagVerdict, *tags.TagPolicy}
