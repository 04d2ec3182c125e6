"""The pages that docs/make_reference.py writes, and the tables that have to agree with the code."""

import re
from pathlib import Path

import pytest

from docs.make_reference import SCRIPTS, pages
from docs.make_site import DOCS, read_settings, unlisted, with_site_links
from training.cli import field_names
from training.flags import flag_name
from training.foreign_flags import NOT_NEEDED, OTHER_NAMES

COMING_FROM = (DOCS / "coming-from.md").read_text(encoding="utf-8")
ROWS = [
    line.strip("|").split("|")
    for line in COMING_FROM.splitlines()
    if line.startswith("|") and len(line.strip("|").split("|")) == 5
]
OURS = {flag_name(name) for kind in SCRIPTS.values() for name in field_names(kind)}


def test_the_reference_is_what_the_programs_say():
    found = pages()
    for name, text in found.items():
        page = DOCS / "reference" / name
        assert page.exists() and page.read_text(encoding="utf-8") == text, (
            f"docs/reference/{name} is out of date: python docs/make_reference.py"
        )
    written = {page.name for page in (DOCS / "reference").glob("*.md")}
    assert written == set(found)


def test_every_page_is_in_the_menu():
    assert not unlisted(read_settings())


def test_there_are_rows():
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_flags_of_others_on_the_page_are_those_that_scripts_translate(row):
    _, *theirs, here = row
    for flag in re.findall(r"`--([\w-]+)", " ".join(theirs)):
        name = flag.replace("_", "-")
        if f"--{name}" in OURS or name in NOT_NEEDED:
            continue
        assert flag_name(OTHER_NAMES[name]) in here, f"--{flag} is {OTHER_NAMES[name]} in the code"
    for flag in re.findall(r"`(--[\w-]+)", here):
        assert flag in OURS


def test_names_that_are_translated_exist_here():
    assert {flag_name(ours) for ours in OTHER_NAMES.values()} <= OURS


def test_links_to_the_checkout_become_links_to_the_repository():
    text = "[a](../ldm/schedule.py) [b](data.md#a-folder) [c](https://x.org) `[d](../e.py)` [f](#g)"
    assert with_site_links(text, DOCS / "page.md", "https://host/repo") == (
        "[a](https://host/repo/blob/main/ldm/schedule.py) [b](data.md#a-folder) "
        "[c](https://x.org) `[d](../e.py)` [f](#g)"
    )
    changes = with_site_links("[a](docs/data.md#x)", Path(DOCS.parent, "CHANGELOG.md"), "r")
    assert changes == "[a](data.md#x)"
