"""The documentation: it builds without a warning, and its generated pages say what the models say."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

from netspace.commands.recipes import KINDS, schema
from netspace.config import bundled_names

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_documentation_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason='needs `pip install ".[docs]"`')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = html.unescape(re.sub(r"<[^>]+>", "", (tmp_path / "recipes.html").read_text(encoding="utf-8")))
    for name in [*bundled_names(), *(each.name for kind in KINDS for each in schema(kind))]:
        assert name in page
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert 'id="netspace.space.Space.load"' in api and 'id="model_zoo.builder.build"' in api


def test_the_log_is_dated_newest_first() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "log.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) >= 2 and headings == sorted(headings, reverse=True)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", each) for each in headings)


def test_links_between_pages_lead_to_files() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), (page.name, link)


def test_what_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:netspace|model_zoo|tools|tests|configs|docs)/[\w./]*)`", text)
    assert len(paths) > 10 and all((ROOT / path).exists() for path in paths), paths
    for table, path in re.findall(r"table `([A-Z]+)` in `([\w./]+)`", text):
        assert re.search(rf"^{table}: dict\[", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), (table, path)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert targets == set(re.findall(r"`make (\w+)`", text))
