"""What commands return, print with `--json`, keep on disk and show in reports: one pydantic model for each.

Axes: M members, A architectures, S points of a line, L layers, K kernels. Accuracies are fractions of the task's test
images unless a field says otherwise; None or NaN is a number that was not measured. Fields that a command does not set
are neither printed nor written; files of older versions may lack any field that has a default.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import ConfigDict
from pydantic_core import PydanticCustomError

from netspace.errors import NetspaceError
from netspace.io import Record, read_json, write_json

Number = float | None
Numbers = list[float | None]
P = TypeVar("P", bound="Part")
Ends = tuple[float | None, float | None]  # at the start and at the end of a line


class Part(Record):
    """A group of figures inside a result."""

    model_config = ConfigDict(populate_by_name=True)

    def extended(self, kind: type[P], **more: Any) -> P:
        """Return a `kind` with the fields that were set here and some more."""
        return kind(**{name: getattr(self, name) for name in self.model_fields_set}, **more)

    def payload(self) -> dict[str, Any]:
        """Return the fields that were set, by their names in JSON."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Result(Part):
    """What a command returns, and the file that it leaves behind."""

    command: ClassVar[str] = ""  # that writes the file

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that `write` wrote. Raises `NetspaceError`, naming the file and the command that writes it."""
        try:
            return read_json(path, cls)
        except NetspaceError as error:
            raise NetspaceError(f"{error}: run `netspace {cls.command}` again" if cls.command else str(error)) from None

    def write(self, path: Path) -> None:
        """Write the fields that were set as JSON, atomically."""
        write_json(path, self.payload())


class Score(Part):
    """How a task judges outputs. What is None is not said by files of older versions."""

    name: str
    higher_is_better: bool
    noun: str | None = None  # what sentences call it; None: its name
    meaning: str | None = None  # a phrase that says what it is
    loss: str | None = None  # what the fields `kl` are: the behaviour loss
    inputs: str | None = None  # what networks are given, such as 'points'
    own_targets: bool | None = None  # whether each network was fitted to a signal of its own

    def word(self, text: str) -> str:
        """Return a text on accuracy on images as one on this score; names and paths in it stay as they are.

        >>> Score(name="error", higher_is_better=False).word("accuracy on test images, of images/0007")
        'error on test inputs, of images/0007'
        >>> Score(name="within", higher_is_better=True, noun="score", inputs="points").word("one as accurate on an image")
        'one of equal score on a point'
        """
        noun, inputs = self.noun or self.name, self.inputs or "inputs"
        one = inputs.removesuffix("s")
        words = {"as accurate as": f"of the same {noun} as", "as accurate": f"of equal {noun}", "accuracy": noun}
        words |= {"accuracies": "scores" if noun == "score" else f"{noun} scores", "KL": self.loss or "behaviour loss"}
        words |= {"an image": f"{'an' if one[0] in 'aeiou' else 'a'} {one}", "images": inputs, "image": one}
        pattern = rf"(?<![\w./:-])({'|'.join(words)})(?![\w/-]|\.\w)"
        return re.sub(pattern, lambda found: words[found[1]], text)


def expect(condition: bool, sentence: str) -> None:
    """Raises `PydanticCustomError` with the sentence unless `condition` holds: a record contradicts itself."""
    if not condition:
        raise PydanticCustomError("contradiction", "{sentence}", {"sentence": sentence})
