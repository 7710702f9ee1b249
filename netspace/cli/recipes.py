"""`netspace recipes`: list the bundled recipes, show one, or list every setting of a kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from netspace.cli.output import say
from netspace.cli.shared import Json

if TYPE_CHECKING:
    from netspace.results.zoos import RecipeSchema

app = typer.Typer(help="List the bundled recipes, show one, or list every setting that a recipe can have.")


@app.callback(invoke_without_command=True)
def default(context: typer.Context, json: Json = False) -> None:
    """List the bundled recipes, show one, or list every setting that a recipe can have."""
    if context.invoked_subcommand is None:
        list_(json)


@app.command("list")
def list_(json: Json = False) -> None:
    """List the recipes that come with netspace."""
    from netspace.commands.recipes import recipes
    from netspace.results.zoos import RecipeList

    say(RecipeList(recipes=recipes()), json, lambda r: "\n".join(f"{each.name:34} {each.help}" for each in r.recipes))


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A bundled recipe, such as space/quickstart.")],
    json: Json = False,
) -> None:
    """Print a recipe as it is written; --json adds its resolved settings, defaults included."""
    from netspace.commands.recipes import recipe

    say(recipe(name), json, lambda r: r.text.rstrip())


@app.command()
def schema(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="zoo, space, compress or morph; compress-bytes, compress-transfer or optimize for these commands' --set.",
        ),
    ],
    json: Json = False,
) -> None:
    """List every setting of a kind of recipe: name, type, default, unit and reason."""
    from netspace.commands.recipes import schema as settings
    from netspace.results.zoos import RecipeSchema

    say(RecipeSchema(kind=kind, settings=settings(kind)), json, _settings)


def _settings(result: RecipeSchema) -> str:
    lines = []
    for each in result.settings:
        default = "required" if each.required else f"default {value(each.default)}"
        lines.append(f"{each.name} ({each.type}; {default})" + (f"\n    {each.help}" if each.help else ""))
    return "\n".join(lines)


def value(value: Any) -> str:
    """Return a default as YAML; of a list of groups their number, since each of their settings has a line."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"{len(value)} of them"
    return {"None": "none", "True": "true", "False": "false"}.get(str(value), str(value))
