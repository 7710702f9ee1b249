"""How a space is stored: in its run folder, and as a folder or hub repository with a model card.

The latter has three files: `config.json` (the recipe, the architectures, what `netspace eval` measured), `model.safetensors`
and `README.md`, the card. Reading either runs no code: an architecture outside netspace has to be trusted first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor

from netspace.config import read_back, validate
from netspace.errors import NetspaceError, UsageError, first_line
from netspace.hardware import AllocationLimit
from netspace.io import Record, read_json, read_tensors, write_json, write_tensors
from netspace.models.autoencoder import AutoEncoder, build_autoencoder
from netspace.networks.family import Family
from netspace.results.spaces import Evaluation
from netspace.run_folder import RunFolder, is_run, package_version
from netspace.training.recipe import SpaceRecipe

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"  # the files of a stored space
FORMAT = 1  # version of these files
BUNDLED = Path(__file__).parent / "spaces"  # with a folder for each space that comes with netspace
SPARE_BYTES = 1 << 28  # by which building a space may exceed four times its weights

TEMPLATE = """---
{{ card_data }}
---

# A latent space of neural networks

{{ summary }}

```python
from netspace import Space

space = Space.from_pretrained("FOLDER")  # with these files, or the name of this repository on the hub
network = space.decode(space.encode("net.safetensors"))  # a latent of {{ latent }} numbers, and a torch module again
```

It was trained with netspace, whose method is *Learning the Space of Deep Models* (Berardi, De Luigi, Salti,
Di Stefano, ICPR 2022). Loading it runs no code from this repository.

## Networks

| architecture | factory | parameters | one input |
|---|---|---|---|
{% for row in archs -%}
| {{ row.id }} | {{ row.factory }} | {{ row.parameters }} | {{ row.input }} |
{% endfor %}
Batch norm is folded into the layers. Networks that were trained on other data than these, or from another kind of
initialisation, may get latents that mean little.

## How good it is

{{ evaluation }}

## Settings

```yaml
{{ settings }}
```
"""


class SpaceRecord(Record):
    """What `space.json` in a run folder holds."""

    archs: dict[str, Any]  # as `Family.to_json` gives them


class StoredRecord(SpaceRecord):
    """What `config.json` of a stored space holds."""

    netspace_space: int  # `FORMAT`
    settings: dict[str, Any]  # of the recipe, resolved
    evaluation: dict[str, Any] | None = None  # as `netspace eval` wrote it, without details


class StoredSpace(ModelHubMixin, library_name="netspace", tags=["weight-space"], model_card_template=TEMPLATE):
    """The part of `netspace.Space` that reads and writes it."""

    model: AutoEncoder
    recipe: SpaceRecipe
    family: Family
    run: Path | None  # the run folder that it was loaded from
    evaluation: Evaluation | None  # what `netspace eval` measured on test members

    @classmethod
    def _made(cls, model: AutoEncoder, recipe: SpaceRecipe, family: Family) -> Self:
        """Make the space of its parts; the mixin reads the signature of `__init__` by this name."""
        return cls(model, recipe, family)

    @classmethod
    def load(cls, run: str | Path, device: str | torch.device = "cpu") -> Self:
        """The space that a run folder holds, or a folder of `save_pretrained`, or that comes with netspace under a name.

        Raises `NetspaceError` if it holds none, or is broken.
        """
        run = Path(run)
        if not run.exists() and str(run) in bundled_spaces():
            run = BUNDLED / run
        if not is_run(run):
            if (run / CONFIG).is_file() and (run / WEIGHTS).is_file():
                return cls._read(run / CONFIG, run / WEIGHTS, device)
            raise NetspaceError(
                f"{run} is not a run folder (config.yaml and provenance.json were expected in it, written by `netspace train`)"
            )
        recipe = read_back(SpaceRecipe, run / "config.yaml")
        weights = RunFolder.of_space(run).load_best()
        space = cls._build(
            recipe, lambda: read_json(run / "space.json", SpaceRecord).archs, weights, device, f"{run}", "space.json"
        )
        space.run = run
        if (run / "eval-test.json").is_file():
            space.evaluation = _without_details(Evaluation.read(run / "eval-test.json"))
        return space

    @classmethod
    def _build(
        cls,
        recipe: SpaceRecipe,
        record: Callable[[], Mapping[str, Any]],
        weights: dict[str, Tensor],
        device: str | torch.device,
        origin: str,
        file: str,
    ) -> Self:
        """Return the space of a recipe, a record of architectures and weights, within bounds of memory."""
        limit = 4 * sum(4 * value.numel() for value in weights.values()) + SPARE_BYTES
        try:
            archs = record()
            with AllocationLimit(limit):
                family = Family.from_json(archs, device, recipe.multi.rows if recipe.multi else None)
        except UsageError:  # of an architecture that nobody trusted, which says what to do
            raise
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RuntimeError,
            NetspaceError,
        ) as error:
            raise NetspaceError(
                f"{origin} does not say which networks its space holds ({file}): {first_line(error)}"
            ) from None
        try:
            with AllocationLimit(limit):
                model = build_autoencoder(recipe.latent, recipe.encoder, recipe.decoder, family)
            model.load_state_dict(weights)
        except (RuntimeError, TypeError, ValueError, ArithmeticError, NetspaceError) as error:
            why = str(error).splitlines()[-1].strip() if isinstance(error, RuntimeError) else first_line(error)
            raise NetspaceError(f"the weights in {origin} do not fit its settings: {why}") from None
        return cls._made(model.to(device), recipe, family)

    @classmethod
    def _read(cls, config: Path, weights: Path, device: str | torch.device) -> Self:
        """Return the space of two files that `save_pretrained` wrote."""
        stored = read_json(config, StoredRecord)
        if stored.netspace_space != FORMAT:
            raise NetspaceError(
                f"{config} is of version {stored.netspace_space} of its format; this netspace reads {FORMAT}"
            )
        recipe = validate(SpaceRecipe, stored.settings, str(config), written=True)
        space = cls._build(recipe, lambda: stored.archs, read_tensors(weights)[0], device, str(config.parent), CONFIG)
        if stored.evaluation is not None:
            space.evaluation = validate_evaluation(stored.evaluation, config)
        return space

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the space to a folder: settings, weights (safetensors) and a model card, for `from_pretrained`.

        Weights that 16 bits represent exactly take 16 bits. `options` are those of `huggingface_hub.ModelHubMixin`.
        Raises `UsageError` for a folder that holds something else, which is left as it is.

        >>> from netspace import Space
        >>> Space.load(run).save_pretrained(folder / "mine")
        >>> Space.from_pretrained(folder / "mine").latent
        64
        """
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} was to be a folder for the space, but it is a file: choose another name")
        if folder.is_dir() and any(folder.iterdir()) and not _is_stored(folder):
            raise UsageError(
                f"{folder} holds something else than a stored space: choose another folder, so that nothing is lost"
            )
        result: str | None = super().save_pretrained(folder, **options)
        return result

    def _save_pretrained(self, save_directory: Path) -> None:
        write_tensors(
            save_directory / WEIGHTS, {name: _narrowest(value) for name, value in self.model.state_dict().items()}
        )
        evaluation = {} if self.evaluation is None else {"evaluation": self.evaluation.payload()}
        write_json(
            save_directory / CONFIG,
            {
                "netspace_space": FORMAT,
                "netspace": package_version("netspace"),
                "settings": self.recipe.model_dump(mode="json"),
                "archs": self.family.to_json(),
                **evaluation,
            },
        )
        (save_directory / CARD).unlink(missing_ok=True)  # of the space that was here before

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, device: str | torch.device = "cpu", **options: Any
    ) -> Self:
        """The space of a folder that `save_pretrained` wrote, or of a repository on the Hugging Face hub ('user/name').

        `options` are those of `huggingface_hub.ModelHubMixin` (`revision`, `token`, `cache_dir`, `local_files_only`).
        Raises `NetspaceError` if there is none, or it is broken.
        """
        name = str(pretrained_model_name_or_path)
        if Path(name).is_dir():
            return cls.load(name, device)
        try:
            space: Self = super().from_pretrained(name, device=device, **options)
        except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
            raise NetspaceError(
                f"no space could be read from {name!r} ({first_line(error).rstrip('.')}): give a folder that save_pretrained "
                "wrote, or a repository of the Hugging Face hub, user/name"
            ) from None
        return space

    @classmethod
    def _from_pretrained(cls, *, model_id: str, device: str | torch.device = "cpu", **options: Any) -> Self:
        config, weights = (Path(hf_hub_download(model_id, name, **options)) for name in (CONFIG, WEIGHTS))
        return cls._read(config, weights, device)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the model card: architectures, settings and measures of this space."""
        import yaml

        settings = {"latent": self.recipe.latent, "encoder": self.recipe.encoder, "decoder": self.recipe.decoder}
        plain = {
            name: value.model_dump(mode="json") if hasattr(value, "model_dump") else value
            for name, value in settings.items()
        }
        archs = [
            {
                "id": each.id,
                "factory": f"{each.spec.arch}({', '.join(f'{key}={value}' for key, value in each.spec.settings.items())})",
                "parameters": f"{each.parameters:,}",
                "input": " x ".join(map(str, each.spec.input_shape)),
            }
            for each in self.family
        ]
        defaults = {
            "summary": f"Networks of {self.family.names} as points of {self.recipe.latent} numbers, and back.",
            "latent": self.recipe.latent,
            "archs": archs,
            "evaluation": _measured(self.evaluation),
            "settings": yaml.safe_dump(plain, sort_keys=False).rstrip(),
        }
        return super().generate_model_card(*args, **{**defaults, **kwargs})


def bundled_spaces() -> list[str]:
    """Return the names of the spaces that come with netspace."""
    return sorted(path.name for path in BUNDLED.iterdir() if (path / CONFIG).is_file()) if BUNDLED.is_dir() else []


def validate_evaluation(payload: Mapping[str, Any], origin: Path) -> Evaluation:
    """Return the evaluation in a record. Raises `NetspaceError` if it is none."""
    try:
        return Evaluation.model_validate(payload)
    except ValueError as error:
        raise NetspaceError(f"{origin} has an evaluation that is none: {first_line(error)}") from None


def _without_details(figures: Evaluation) -> Evaluation:
    """Return an evaluation without its figures of single members, and without paths of this machine."""
    names = set(Evaluation.model_fields) & figures.model_fields_set
    return Evaluation(**{name: getattr(figures, name) for name in names if name != "run"})


def _is_stored(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()} - {".gitattributes", ".git", ".cache"}
    return names <= {CONFIG, WEIGHTS, CARD}


def _narrowest(value: Tensor) -> Tensor:
    """Return a tensor in 16 bits if they represent it exactly, else as it is."""
    if value.dtype != torch.float32:
        return value
    half = value.half()
    return half if torch.equal(half.float(), value) else value


def _measured(figures: Evaluation | None) -> str:
    """Return what an evaluation says, as Markdown."""
    if figures is None:
        return "It was not evaluated: `netspace eval RUN` compares a space with baselines."
    columns = {
        "accuracy of targets": (figures.accuracy_target, "{:.1%}"),
        "of predicted networks": (figures.accuracy_predicted, "{:.1%}"),
        "R2 of accuracy": (figures.r2, "{:.3f}"),
        "mean difference": (figures.mae, "{:.2%}"),
        "bias": (figures.bias, "{:+.2%}"),
        "agreement": (figures.agreement, "{:.1%}"),
    }

    def row(name: str, values: list[str]) -> str:
        return f"| {name} | " + " | ".join(values) + " |"

    def text(value: float | None, form: str) -> str:
        return "-" if value is None or value != value else form.format(value)

    lines = [
        f"Measured by `netspace eval` on {figures.members or '?'} {figures.split} networks that training never saw, with test inputs. The "
        "rows below the first are baselines: lookups among the training networks, averages, noise.",
        "",
        row("", list(columns)),
        "|---" * (len(columns) + 1) + "|",
        row("this space", [text(value, form) for value, form in columns.values()]),
    ]
    for name, each in figures.listed_baselines.items():
        if each is not None:
            values = (each.accuracy_target, each.accuracy_predicted, each.r2, each.mae, each.bias, each.agreement)
            lines.append(
                row(
                    name.replace("_", " "),
                    [text(value, form) for value, (_, form) in zip(values, columns.values(), strict=True)],
                )
            )
    return "\n".join(lines)
