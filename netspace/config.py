"""Recipes: YAML text, `key=value` changes, and a pydantic model that knows every setting.

The settings of a component are defined next to the component; this module has what all of them share. An unknown
setting stops the program at once, with an error that lists the valid ones. YAML is read by the safe loader: a recipe
is data, and nothing in it runs.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from netspace.errors import NetspaceError, UsageError, unknown
from netspace.io import parse_yaml, read_text, read_yaml

MAX_KEYS_SHOWN, MAX_LETTERS_SHOWN = 8, 80  # of a value that an error quotes
BUNDLED = "configs"  # the folder of the bundled recipes: 'zoo/quickstart' is configs/zoo/quickstart.yaml


def _inside(name: str) -> str:
    path = PurePath(name)
    if not name.isprintable() or path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("a file's name that stays inside its folder is expected: without '..', and not from '/' on")
    return name


FileName = Annotated[str, AfterValidator(_inside)]  # a relative path that stays inside the folder it is joined to


def _not_negative(seed: int, info: ValidationInfo) -> int:
    if seed < 0 and not (info.context or {}).get(WRITTEN):
        raise ValueError("Input should be greater than or equal to 0")
    return seed


WRITTEN = "written"  # in the context of a validation: netspace itself wrote the settings
# The range that torch accepts. Numpy and scikit-learn take no negative seeds; runs of earlier versions may have one.
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), AfterValidator(_not_negative)]


class Settings(BaseModel):
    """Base class of every group of settings: frozen, and unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    bundled: ClassVar[str] = ""  # folder of the bundled recipes that this model reads; '': any of them

    @classmethod
    def completed(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Return settings written by an earlier version, with newer settings at the values that version behaved by."""
        return raw


class KindSettings(Settings, ABC):
    """Settings of a component that has several kinds. A class of the table may have a `Config` with settings of its own."""

    kind: str

    @classmethod
    @abstractmethod
    def table(cls) -> Mapping[str, Any]:
        """Return the classes of the component by their kinds."""

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        if kind not in cls.table():
            *others, last = map(repr, cls.table())
            raise ValueError(f"Input should be {', '.join(others)} or {last}")
        return kind

    @model_validator(mode="wrap")
    @classmethod
    def _of_kind(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        component = cls.table().get(str(raw.get("kind"))) if isinstance(raw, Mapping) else None
        own: type[Self] = getattr(component, "Config", cls)
        return handler(raw) if issubclass(cls, own) else own.model_validate(raw)


S = TypeVar("S", bound=BaseModel)


def load(
    model: type[S], source: str | Path | Mapping[str, Any], changes: Sequence[str] = (), written: bool = False
) -> S:
    """Read settings from a YAML file (a path, or the name of a bundled recipe such as 'zoo/quickstart') or a mapping.

    Args:
        model: the pydantic model that the settings must fit.
        source: a path, the name of a bundled recipe, or a mapping.
        changes: `key=value` each, with dots for nested keys and YAML for the value: `encoder.hidden=64`.
        written: netspace itself wrote the file, with every setting that it knew.

    Raises:
        UsageError: the file is missing, is not YAML, has an unknown setting or an invalid value.
        NetspaceError: a file that netspace wrote (`written`) is damaged.

    >>> class Recipe(Settings):
    ...     seed: Seed = 0
    >>> load(Recipe, {}, ["seed=3"])
    Recipe(seed=3)
    """
    if isinstance(source, Mapping):
        raw: Any = copy.deepcopy(dict(source))
        origin = "the settings"
    else:
        path = find(source, getattr(model, "bundled", ""))
        origin = str(source)
        try:
            raw = read_yaml(path) if written else parse_yaml(read_text(path), origin, "a recipe in YAML")
        except NetspaceError as error:
            raise error if written else UsageError(str(error)) from None
        if not isinstance(raw, dict):
            raise UsageError(
                f"{origin} was expected to be a recipe of `name: value` lines, but holds {type(raw).__name__}"
            )
    if written and issubclass(model, Settings):
        raw = model.completed(raw)
    for change in changes:
        _begin_list(model, raw, change)
        apply_change(raw, change)
    return validate(model, raw, origin, written)


def find(source: str | Path, kind: str = "") -> Path:
    """Return the file of a recipe: an existing path, else a bundled recipe, with or without '.yaml'.

    Raises:
        UsageError: there is no such recipe; lists the bundled recipes of `kind` ('zoo', 'space', 'compress', 'morph', '' for all).
    """
    path = Path(source)
    if path.is_file():
        return path
    folder = bundled_folder()
    for name in (f"{source}.yaml", str(source)):
        for candidate in (folder / name, folder / name.removeprefix(f"{BUNDLED}/")):
            if candidate.is_file():
                return candidate
    raise unknown("recipe", source, bundled_names(kind), "Or give the path of a YAML file that exists.")


def bundled_folder() -> Path:
    """Return the folder of the bundled recipes: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).parent
    installed = package / BUNDLED
    return installed if installed.is_dir() else package.parent / BUNDLED


def bundled_names(kind: str = "") -> list[str]:
    """Return the names of the bundled recipes of a `kind` ('zoo', 'space', 'compress', 'morph'; '' for all): 'zoo/quickstart'."""
    folder = bundled_folder()
    names = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
    return [name for name in names if name.startswith(kind)]


def _begin_list(model: type[BaseModel], raw: dict[str, Any], change: str) -> None:
    """Insert the default of a list that the recipe leaves out, if `change` names an item of it."""
    name, _, rest = change.partition("=")[0].partition(".")
    if name in raw or name not in model.model_fields or not rest.partition(".")[0].isdecimal():
        return
    default = model.model_fields[name].get_default(call_default_factory=True)
    if isinstance(default, list | tuple):
        raw[name] = [each.model_dump(mode="json") if isinstance(each, BaseModel) else each for each in default]


def apply_change(raw: dict[str, Any], change: str) -> None:
    """Change nested dictionaries by one `dotted.key=value`; items of a list are named by their index.

    Raises:
        UsageError: `change` is not of that form, or does not fit what is there.
    """
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise UsageError(f"--set takes key=value (such as --set seed=1), not {change!r}")
    parts = key.split(".")
    node: Any = raw
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                where = ".".join(parts[:index])
                raise UsageError(f"--set {change}: {where} is a list of {len(node)}; {part!r} is not an index of it")
            slot: Any = int(part)
        else:
            slot = part
        if last:
            try:
                node[slot] = parse_yaml(value, "the value")
            except NetspaceError:
                raise UsageError(f"--set {change}: the value does not parse as YAML") from None
        else:
            inner = node[slot] if isinstance(node, list) else node.setdefault(slot, {})
            if not isinstance(inner, dict | list):
                raise UsageError(f"--set {change}: {'.'.join(parts[: index + 1])} is a single value, it has no parts")
            node = inner


def validate(model: type[S], raw: Mapping[str, Any], origin: str, written: bool = False) -> S:
    """Return `model` filled from a mapping; `origin` names the mapping in errors. `written`: netspace itself wrote it.

    Raises:
        UsageError: the first of pydantic's complaints, as one sentence.
    """
    try:
        return model.model_validate(dict(raw), context={WRITTEN: written})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            fields = valid_names(model, first["loc"][:-1])
            raise unknown("setting", where, fields, f"It is in {origin}.") from None
        if first["type"] == "missing":
            raise UsageError(f"setting {where!r} is missing in {origin}: it has no default and must be given") from None
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "too_short":
            message = f"a list of at least {first['ctx']['min_length']} is expected"
        what = f"setting {where} in {origin}" if where else f"{origin} as a whole"
        # the message of a group's own validator says what is wrong; the group's keys would add nothing
        whole = first["type"] == "value_error" and isinstance(first["input"], Mapping)
        raise UsageError(f"{what}: {message}" + ("" if whole else f" (found: {_brief(first['input'])})")) from None


def _brief(value: Any) -> str:
    """Return a short text for a value: the keys of a group, the beginning of a long text, the length of a long list."""
    if isinstance(value, Mapping):
        keys = [str(key) for key in value]
        more = f" and {len(keys) - MAX_KEYS_SHOWN} more" if len(keys) > MAX_KEYS_SHOWN else ""
        return f"a group of {', '.join(keys[:MAX_KEYS_SHOWN])}{more}" if keys else "a group of nothing"
    if isinstance(value, str):
        more = f" and {len(value) - MAX_LETTERS_SHOWN // 2} letters more" if len(value) > MAX_LETTERS_SHOWN else ""
        return repr(value[: MAX_LETTERS_SHOWN // 2] if more else value) + more
    text = repr(value)
    if len(text) <= MAX_LETTERS_SHOWN:
        return text
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, Sized) else f"a long {type(value).__name__}"


def valid_names(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the full dotted names of the settings that are valid at a location inside `model`."""
    group: type[BaseModel] = model
    parts = iter(location)
    for part in parts:
        if isinstance(part, int):
            continue
        field = group.model_fields.get(part)
        if field is not None and get_origin(field.annotation) is dict:
            next(parts, None)  # the user chooses the keys of a dictionary
        inner = list(models_in(field.annotation)) if field is not None else []
        if not inner:
            return []
        group = inner[0]
    prefix = "".join(f"{part}." for part in location)
    return [prefix + name for name in group.model_fields]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the pydantic models that occur in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in models_in(inner)]


def to_yaml(settings: BaseModel) -> str:
    """Return all settings, defaults included, as YAML text that `load` reads back to equal settings."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_back(model: type[S], path: Path) -> S:
    """Return settings that netspace wrote. Raises `NetspaceError` if another version wrote them, or they are damaged."""
    try:
        return load(model, path, written=True)
    except UsageError as error:
        raise NetspaceError(f"{path} was not written by this version of netspace: {error}") from None


def resumed(model: type[S], path: Path, changes: Sequence[str]) -> S:
    """Return the settings that a run was started with, with `changes` that the user gives when resuming it."""
    settings = read_back(model, path)
    return load(model, settings.model_dump(mode="json"), changes) if changes else settings


def changed(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> str:
    """Return the first setting that differs, as 'seed was 0 and is 1 now'; '' if none does."""
    for key in sorted({*before, *now}):
        old, new = (_by_index(each.get(key)) for each in (before, now))
        if isinstance(old, dict) and isinstance(new, dict):
            inner = changed(old, new, f"{where}{key}.")
            if inner:
                return inner
        elif old != new:
            return f"{where}{key} was {old!r} and is {new!r} now"
    return ""


def _by_index(value: Any) -> Any:
    """Return a list of groups as a dictionary by index, so that `changed` can name one setting of one stage."""
    groups = isinstance(value, list | tuple) and bool(value) and all(isinstance(each, dict) for each in value)
    return {str(index): each for index, each in enumerate(value)} if groups else value
