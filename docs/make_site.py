"""python docs/make_site.py

Builds the site from docs/ and CHANGELOG.md into build/site, by Zensical; warnings are errors, so a
page that is in no menu or a link to nothing ends it with status 1. `--serve` shows it, and builds
again when this program is started again.

The pages link to files of the checkout, so that they can be read there; on the site these links
lead to the repository.

Needs: pip install -e '.[docs]'
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS, PAGES, SETTINGS = ROOT / "docs", ROOT / "build" / "pages", ROOT / "mkdocs.yml"
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
PROGRAMS = shutil.ignore_patterns("*.py", "__pycache__")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", action="store_true", help="show it at http://localhost:8000")
    serve = parser.parse_args().serve
    settings = read_settings()
    if missing := sorted(unlisted(settings)):
        sys.exit(f"mkdocs.yml has no place in its menu for {', '.join(missing)}.")
    collect_pages(settings["repo_url"])
    command = [sys.executable, "-m", "zensical", "serve" if serve else "build"]
    command += ["--config-file", str(SETTINGS), "--strict", *([] if serve else ["--clean"])]
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)


def read_settings() -> dict[str, Any]:
    return yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))


def unlisted(settings: dict[str, Any]) -> set[str]:
    """Return the pages that are in no menu; a page listed twice or not there is an error."""
    listed = list(pages_in(settings["nav"]))
    if twice := {page for page in listed if listed.count(page) > 1}:
        sys.exit(f"mkdocs.yml lists {', '.join(sorted(twice))} twice.")
    there = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} | {"changelog.md"}
    if lost := set(listed) - there:
        sys.exit(f"mkdocs.yml lists {', '.join(sorted(lost))}, which docs/ does not hold.")
    return there - set(listed)


def pages_in(menu: Any) -> list[str]:
    """Return the pages of a menu, which is a page, a list of menus, or title -> menu."""
    if isinstance(menu, str):
        return [menu]
    parts = menu.values() if isinstance(menu, dict) else menu
    return [page for part in parts for page in pages_in(part)]


def collect_pages(repository: str) -> None:
    """Copy the pages to build/pages, with links that hold on the site."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(DOCS, PAGES, ignore=PROGRAMS)
    for page in DOCS.rglob("*.md"):
        text = with_site_links(page.read_text(encoding="utf-8"), page, repository)
        (PAGES / page.relative_to(DOCS)).write_text(text, encoding="utf-8")
    changes = ROOT / "CHANGELOG.md"
    text = with_site_links(changes.read_text(encoding="utf-8"), changes, repository)
    (PAGES / "changelog.md").write_text(text, encoding="utf-8")


def with_site_links(text: str, page: Path, repository: str) -> str:
    """Return the text of a page with links to files outside docs/ as links to the repository."""

    def change(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        path, hash_sign, anchor = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        file = (page.parent / path).resolve()
        if file.is_relative_to(DOCS):
            inside = path if page.is_relative_to(DOCS) else file.relative_to(DOCS).as_posix()
            return f"{before}{inside}{hash_sign}{anchor}{after}"
        kind = "tree" if file.is_dir() else "blob"
        place = file.relative_to(ROOT).as_posix()
        return f"{before}{repository}/{kind}/main/{place}{hash_sign}{anchor}{after}"

    parts = CODE.split(text)  # code is at the odd places
    return "".join(
        part if k % 2 or not part else LINK.sub(change, part) for k, part in enumerate(parts)
    )


if __name__ == "__main__":
    main()
