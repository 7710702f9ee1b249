"""Pages of the documentation that are generated: `mkdocs build --strict` calls `on_files`.

README.md, CONTRIBUTING.md and CHANGELOG.md become pages with their links adapted; recipes and all their settings are
read from the pydantic models; the API page names every module that a user may import.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.structure.files import File, Files

import model_zoo
import netspace
from netspace.cli.recipes import value
from netspace.commands.recipes import KINDS, recipes, schema

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
INTERNAL = ("netspace.cli", "netspace.report", "netspace.__main__")


class Examples(Extension):
    """Show doctests as code on the site: each block of them becomes a fenced one."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring and ">>>" in obj.docstring.value:
            value = inspect.cleandoc(obj.docstring.value)
            obj.docstring.value = re.sub(r"(?m)^>>>.*(?:\n.+)*", lambda block: f"```python\n{block[0]}\n```", value)


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {page: _adapted(name) for name, page in PAGES.items()}
    for path, text in {**pages, "recipes.md": _recipes(), "api.md": _api()}.items():
        files.append(File.generated(config, path, content=text))
    return files


def _adapted(name: str) -> str:
    """Return a page of the repository's top folder, with links as they are inside docs/."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    for other, page in PAGES.items():
        text = text.replace(f"]({other})", f"]({page})")
    return text


def _recipes() -> str:
    parts = [
        "# Recipes\n\nA recipe is a YAML file; `netspace recipes` shows the bundled ones. Any setting is changed with "
        "`--set optimizer.learning_rate=0.002`. In names, NAME stands for a key of your choice and N for a position in "
        "a list, counted from 0."
    ]
    for kind in KINDS:
        listed = [[f"`{each.name}`", each.help] for each in recipes() if each.kind == kind]
        settings = [
            [
                f"`{each.name}`",
                each.type,
                "required" if each.required else f"`{value(each.default)}`",
                each.help,
            ]
            for each in schema(kind)
        ]
        parts += [f"## {kind}/...", _table(["recipe", "what it is"], listed)] if listed else []
        parts += [
            f"### Settings of {kind} recipes" if listed else f"## Settings of {kind}",
            _table(["setting", "type", "default", "unit, meaning, reason"], settings),
        ]
    return "\n\n".join(parts)


def _table(head: list[str], rows: list[list[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *escaped])


def _api() -> str:
    names = ["netspace.space", "netspace.zoo"]
    for package in (netspace, model_zoo):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            inside = any(module.name.startswith(each) for each in INTERNAL)
            if not inside and not any(part.startswith("_") for part in module.name.split(".")):
                names.append(module.name)
    return "\n\n".join(["# API", *(f"::: {name}" for name in dict.fromkeys(names))])
