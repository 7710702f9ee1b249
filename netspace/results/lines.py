"""Results on networks along lines through a latent space, and between architectures.

Axes: S points of a line.
"""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from netspace.results import Ends, Number, Numbers, Part, Result, Score, expect
from netspace.results.shapes import LineBodies


class MeanLine(Part):
    """Means over lines towards the best member (NetSpace, Fig. 3 b and d)."""

    pairs: int = 0
    gamma: list[float] = Field(default_factory=list)
    latent_accuracy: Numbers = Field(default_factory=list)
    weight_accuracy: Numbers = Field(default_factory=list)
    aligned_accuracy: Numbers | None = None  # of mixed weights, channels aligned and statistics reset
    spearman_latent: Number = None
    spearman_weights: Number = None
    linear_r2_latent: Number = None
    linear_r2_weights: Number = None
    end_differences: Ends | None = None  # decoded minus target accuracy
    end_distances: Ends | None = None


class Between(Part):
    """Networks decoded where Eq. 12 puts an architecture between the smallest and the largest; means."""

    gamma: Number = None
    shown: bool = True  # whether the space was trained on networks of it
    pairs: int | None = None
    classid_accuracy: Number = None
    accuracy: Number = None
    accuracy_least: Number = None  # of the worst of them
    accuracy_zoo: Number = None  # of the zoo's own test members
    ratio: Number = None  # accuracy over accuracy_zoo
    accuracy_scale_zero: Number = None  # with the decoder's learnt part off
    accuracy_distilled: Number = None  # of a network distilled from the space's teacher
    distilled_steps: int | None = None


class ClassLine(Part):
    """Networks of several architectures along the line between two latents (NetSpace, Fig. 5)."""

    start: str = Field("?", alias="from")
    end: str = Field("?", alias="to")
    gamma: list[float] = Field(min_length=1)
    accuracy: Numbers
    arch: list[str]  # as which each point was decoded
    factors: list[float] = Field(default_factory=list)  # gamma of Eq. 12 for each architecture between the ends
    end_differences: Ends | None = None

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        expect(
            len(self.gamma) == len(self.accuracy) == len(self.arch),
            "a line was expected to have one accuracy and one architecture for each gamma",
        )
        return self


class Interpolation(Result):
    """`netspace interpolate`: networks along the line between two (S,)."""

    command: ClassVar[str] = "interpolate"
    run: str = ""
    start: str = Field("?", alias="from")
    end: str = Field("?", alias="to")
    signals: tuple[str, str] | None = None  # what the two were fitted to, such as 'chair/0003'
    gamma: list[float] = Field(min_length=1)
    arch: list[str] = Field(default_factory=list)
    latent_accuracy: Numbers
    weight_accuracy: Numbers | None = None  # None if weights cannot be mixed
    aligned_accuracy: Numbers | None = None  # of mixed weights, channels aligned and statistics reset
    spearman: Number = None
    weight_spearman: Number = None
    linear_r2: Number = None
    weight_linear_r2: Number = None
    end_differences: Ends | None = None
    score: Score | None = None  # what the accuracies are, if they are scores of another kind
    refined: int | None = None  # steps of descent on the ends' latents
    networks: list[str] = Field(default_factory=list)  # files
    bodies: LineBodies | None = None  # of shapes
    meshes: list[str] = Field(default_factory=list)  # files of the shapes on the latent line that are not empty
    picture: str | None = None  # file

    @property
    def names(self) -> tuple[str, str]:
        """What the ends are called: by their signals, where these are known."""
        return self.signals or (self.start, self.end)

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        count = len(self.gamma)
        counts = [each for each in (self.bodies or LineBodies()).payload().values() if each is not None]
        expect(all(len(each) == count for each in counts), "one number of bodies for each gamma was expected")
        same = len(self.latent_accuracy) == count and len(self.weight_accuracy or self.gamma) == count
        same = same and len(self.aligned_accuracy or self.gamma) == count
        expect(same, "one accuracy for each gamma was expected")
        expect(len(self.arch) in (0, count), "one architecture for each gamma was expected")
        return self
