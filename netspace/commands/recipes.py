"""Which recipes come with netspace, and every setting of each kind, read from the pydantic models and their source.

The reason and the unit of a setting stand once, as the comment on its line in the model (or as its Field's
description). Help, `--json` and the documentation show them from there.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import textwrap
import tokenize
from itertools import takewhile
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from netspace.config import KindSettings, bundled_folder, bundled_names, load, models_in
from netspace.errors import unknown
from netspace.io import read_text
from netspace.results.zoos import Recipe, RecipeText, Setting

KINDS = {  # the model that reads the recipes of a folder in configs/, or the settings of a command
    "zoo": "model_zoo.recipe:ZooRecipe",
    "space": "netspace.training.recipe:SpaceRecipe",
    "compress": "netspace.training.recipe:FitConfig",
    "morph": "netspace.training.morph:MorphConfig",
    # settings of commands that have no bundled recipes
    "compress-bytes": "netspace.compression.work:BudgetConfig",
    "compress-transfer": "netspace.compression.transfer:TransferConfig",
    "optimize": "netspace.commands.optimize:OptimizeConfig",
}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of"}


def recipes() -> list[Recipe]:
    """Return the bundled recipes.

    >>> [recipe.name for recipe in recipes() if recipe.kind == "zoo"][-1]
    'zoo/resnet8-digits'
    """
    return [
        Recipe.model_validate({"name": name, "kind": name.partition("/")[0], "help": _head(name)})
        for name in bundled_names()
    ]


def recipe(name: str) -> RecipeText:
    """Return a recipe's `text` as it is written, and its resolved `settings`, defaults included.

    Raises:
        UsageError: `name` is not a bundled recipe.
    """
    name = name.removesuffix(".yaml")
    if name not in bundled_names():
        raise unknown("bundled recipe", name, bundled_names(), "`netspace recipes` lists them all.")
    path = bundled_folder() / f"{name}.yaml"
    kind = name.partition("/")[0]
    settings = load(model_of(kind), path).model_dump(mode="json")
    return RecipeText(name=name, kind=kind, path=str(path), text=read_text(path), settings=settings)


def model_of(kind: str) -> type[BaseModel]:
    """Return the pydantic model that reads recipes of a `kind`. Raises `UsageError` if there is no such kind."""
    if kind not in KINDS:
        raise unknown("kind of recipe", kind, KINDS)
    module, _, name = KINDS[kind].partition(":")
    model: type[BaseModel] = getattr(importlib.import_module(module), name)
    return model


def schema(kind: str) -> list[Setting]:
    """Return every setting of a kind of recipe, in the order of its model.

    Raises:
        UsageError: `kind` is not one of `KINDS`.

    >>> next(setting for setting in schema("space") if setting.name == "loss.temperature").type
    'number > 0'
    """
    return _settings(model_of(kind), None, "")


def _settings(
    model: type[BaseModel], default: BaseModel | None, prefix: str, base: type[BaseModel] = BaseModel
) -> list[Setting]:
    """Return the settings of a model that those of `base` do not have; of a component also those that some kinds alone have."""
    result: list[Setting] = []
    comments = _comments(model)
    own = {name: field for name, field in model.model_fields.items() if name not in base.model_fields}
    for name, field in own.items():
        required = default is None and field.is_required()
        value = getattr(default, name) if default is not None else None
        if default is None and not required:
            value = field.get_default(call_default_factory=True)
        inner = models_in(field.annotation)
        if not inner or not isinstance(value, BaseModel):
            setting = Setting(
                name=prefix + name,
                type=" | ".join(model.table()) if name == "kind" and issubclass(model, KindSettings) else _type(field),
                required=required,
                default=_plain(value),
                help=field.description or comments.get(name, ""),
            )
            result.append(setting)
        if inner:
            first = value[0] if isinstance(value, tuple) and value else value
            start = first if isinstance(first, BaseModel) else None
            result += _settings(inner[0], start, f"{prefix}{name}.{_key(field.annotation)}")
    if issubclass(model, KindSettings) and base is BaseModel:
        for kind, component in model.table().items():
            for setting in _settings(getattr(component, "Config", model), None, prefix, model):
                result.append(setting.model_copy(update={"help": f"{setting.help} ({kind})"}))
    return result


def _key(annotation: Any) -> str:
    return {dict: "NAME.", tuple: "N."}.get(get_origin(annotation) or annotation, "")


def _plain(value: Any) -> Any:
    """Return a default as a JSON value."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, str | int | float | bool | dict) else str(value)


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(each, key)}" for each in field.metadata for key, sign in BOUNDS.items() if hasattr(each, key)
    ]
    text = _name(field.annotation)
    return (
        text
        if not bounds
        else f"{text.removesuffix(' | none')} {', '.join(bounds)}" + (" | none" if text.endswith(" | none") else "")
    )


def _name(annotation: Any) -> str:
    """Return a type in the words in which a person writes its values."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (UnionType, Union):
        return " | ".join(sorted(map(_name, parts), key=lambda text: text == "none"))
    if origin in (tuple, list):
        inner = list(dict.fromkeys(_name(each) for each in parts if each is not Ellipsis))
        return f"list of {' and '.join(inner)}"
    if origin is dict:
        return f"{_name(parts[1])} by name"
    if hasattr(annotation, "__metadata__"):
        return _name(parts[0])
    if models_in(annotation):
        return "group"
    names = {float: "number", int: "whole number", str: "text", bool: "true | false", NoneType: "none"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)).lower())


def _comments(model: type[BaseModel]) -> dict[str, str]:
    """Return the comments of a model's fields, on the field's own lines or on the lines above it; base classes come first."""
    result: dict[str, str] = {}
    for owner in reversed([each for each in model.__mro__ if issubclass(each, BaseModel) and each is not BaseModel]):
        source = textwrap.dedent(inspect.getsource(owner))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        lines = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        alone = {row for row in lines if source.splitlines()[row - 1].lstrip().startswith("#")}
        definition = ast.parse(source).body[0]
        assert isinstance(definition, ast.ClassDef)
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                first = node.lineno
                while first - 1 in alone:
                    first -= 1
                rows = range(first, (node.end_lineno or first) + 1)
                result[node.target.id] = " ".join(lines[row] for row in rows if row in lines)
    return result


def _head(name: str) -> str:
    """Return the comment at the top of a recipe, in one line."""
    lines = read_text(bundled_folder() / f"{name}.yaml").splitlines()
    return " ".join(line.lstrip("# ").strip() for line in takewhile(lambda line: line.startswith("#"), lines))
