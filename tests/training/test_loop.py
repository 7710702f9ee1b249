"""The loop on its own: stages, parts, averages, what is kept, what is recorded, and going on after a stop."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from netspace.errors import NetspaceError, Stopped
from netspace.io import read_torch, write_torch
from netspace.run_folder import read_metrics
from netspace.streams import generator
from netspace.training import loop
from netspace.training.loop import Learner, Loop, Stage, Validation, make_accelerator
from netspace.training.optimizers import OptimizerConfig

ADAM = OptimizerConfig(name="adam", learning_rate=0.1)


class Line(Learner):
    """Learns the slope 3 from 8 noisy points a step; its score is its nearness, but for what `scores` says."""

    name, log_every, validate_every, validates_first = "line", 2, 4, True

    def __init__(self, *stages: Stage, scores: dict[tuple[int, int], float] | None = None) -> None:
        torch.manual_seed(0)
        self.model, self.stages, self.scores = nn.Linear(1, 1, bias=False), stages, scores or {}
        self.stage, self.best, self.steps, self.calls = 0, {}, 0, []

    def begin(self, stage: int) -> None:
        self.stage = stage
        if self.best:
            self.model.load_state_dict(self.best)
        self.calls.append(("begin", stage, self.slope))

    def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
        parts = self.stages[self.stage].accumulate
        x = torch.randn(8, 1, generator=generator(0, self.stage, number))[part::parts]
        self.steps += 1
        error = (model(x) - 3 * x).square().mean()
        return {"far": error, "none": 0 * error}

    def validate(self) -> Validation:
        score = self.scores.get((self.stage, self.steps), -abs(self.slope - 3))
        return Validation({"slope": self.slope, "nothing": None}, (score,), "")

    def save_best(self, weights: dict[str, Tensor]) -> None:
        self.best = {name: value.clone() for name, value in weights.items()}
        self.calls.append(("save_best", self.stage, float(self.best["weight"])))

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        self.best, self.steps = state["best"], state["steps"]

    @property
    def slope(self) -> float:
        return float(self.model.weight.detach())


def run(learner: Learner, folder: Path, **every: int) -> list[dict[str, Any]]:
    """The records but for the speed."""
    accelerator, _ = make_accelerator(torch.device("cpu"))
    folder.mkdir(exist_ok=True)
    metrics = folder / "metrics.jsonl"
    for name, steps in every.items():
        setattr(learner, name, steps)
    Loop(learner, accelerator, metrics, folder / "last.pt").run()
    return [
        {key: value for key, value in record.items() if key != "steps_a_second"} for record in read_metrics(metrics)
    ]


def test_a_process_alone_begins_on_any_device_though_it_began_on_another() -> None:
    make_accelerator(torch.device("cpu"))
    AcceleratorState._shared_state["device"] = torch.device("cuda")
    accelerator, device = make_accelerator(torch.device("cpu"))
    assert accelerator.device == device == torch.device("cpu") and accelerator.num_processes == 1


def test_stages_are_recorded_and_have_an_optimiser_each(tmp_path: Path) -> None:
    halved = OptimizerConfig(name="adam", learning_rate=0.05, warmup=4)
    records = run(Line(Stage(5, ADAM), Stage(4, halved)), tmp_path)
    steps = [(record["stage"], record["step"]) for record in records if "far" in record]
    checks = [(record["stage"], record["step"]) for record in records if "slope" in record]
    assert steps == [(0, 2), (0, 4), (0, 5), (1, 2), (1, 4)]
    assert checks == [(0, 0), (0, 4), (0, 5), (1, 0), (1, 4)]
    assert [record["rate"] for record in records if "far" in record] == [1.0, 1.0, 1.0, 0.5, 1.0]
    assert all(record["none"] == 0 for record in records if "far" in record)
    assert all(record["nothing"] is None for record in records if "slope" in record)


def test_records_of_a_single_stage_do_not_number_it(tmp_path: Path) -> None:
    assert [record["step"] for record in run(Line(Stage(4, ADAM)), tmp_path) if "stage" not in record] == [0, 2, 4, 4]


def test_a_stage_begins_with_what_was_kept_and_keeps_its_own(tmp_path: Path) -> None:
    """The best of a stage stands only against its own stage: the second is worse throughout, and is kept."""
    worse = {(1, step): -9.0 for step in range(4, 9)} | {(1, 6): -8.0}
    learner = Line(Stage(4, ADAM), Stage(4, ADAM), scores={(0, 2): 1.0, **worse})
    records = run(learner, tmp_path, validate_every=2)
    slopes = {(record["stage"], record["step"]): record["slope"] for record in records if "slope" in record}
    assert learner.calls == [
        ("begin", 0, slopes[0, 0]),
        ("save_best", 0, slopes[0, 0]),
        ("save_best", 0, slopes[0, 2]),
        ("begin", 1, slopes[0, 2]),
        ("save_best", 1, slopes[1, 0]),
        ("save_best", 1, slopes[1, 2]),
    ]
    assert slopes[1, 0] == slopes[0, 2] != slopes[0, 4]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_what_is_stopped_anywhere_goes_on_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    stages = [Stage(5, ADAM.model_copy(update={"ema": ema})), Stage(4, ADAM), Stage(3, ADAM)]
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", -1.0)
    whole = Line(*stages)
    wanted = run(whole, tmp_path / "whole")

    class Stopped(Line):
        def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
            if self.steps == stop:
                raise KeyboardInterrupt
            return super().terms(model, number, part)

    for stop in range(12):
        with pytest.raises(KeyboardInterrupt):
            run(Stopped(*stages), tmp_path / f"{stop}")
        found = Line(*stages)
        assert run(found, tmp_path / f"{stop}") == wanted
        assert found.slope == whole.slope and found.best == whole.best
    again = Line(*stages)
    assert run(again, tmp_path / "whole") == wanted  # nothing is left to do
    assert (again.slope, again.best, again.calls) == (whole.slope, whole.best, [("begin", 2, again.calls[0][2])])


def test_ctrl_c_ends_after_the_step_and_a_second_one_at_once(tmp_path: Path) -> None:
    stages = Stage(5, ADAM), Stage(4, ADAM)
    whole = Line(*stages)
    wanted = run(whole, tmp_path / "whole")

    class Pressed(Line):
        times, step = 1, 6

        def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
            if self.steps == self.step:
                for _ in range(self.times):
                    signal.raise_signal(signal.SIGINT)
            return super().terms(model, number, part)

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(
        Stopped, match=r"^stopped after step 2 of 4 of stage 2 of 2, which is saved in .*last.pt: --resume"
    ):
        run(Pressed(*stages), tmp_path / "once")
    found = Line(*stages)
    assert run(found, tmp_path / "once") == wanted and (found.slope, found.best) == (whole.slope, whole.best)
    assert found.steps == whole.steps
    Pressed.step = 8  # the last one: what would follow the training is not begun
    with pytest.raises(Stopped, match=r"^stopped after step 4 of 4 of stage 2 of 2, which is saved"):
        run(Pressed(*stages), tmp_path / "last")
    assert run(Line(*stages), tmp_path / "last") == wanted
    Pressed.times, Pressed.step = 2, 6
    with pytest.raises(KeyboardInterrupt):
        run(Pressed(*stages), tmp_path / "twice")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_step_in_parts_is_the_whole_step(tmp_path: Path) -> None:
    whole, parts = Line(Stage(6, ADAM)), Line(Stage(6, ADAM, accumulate=4))
    for one, two in zip(run(whole, tmp_path / "whole"), run(parts, tmp_path / "parts"), strict=True):
        assert one == {key: value if value is None else pytest.approx(value, rel=1e-5) for key, value in two.items()}
    assert (whole.steps, parts.steps) == (6, 24)


def test_averaged_weights_are_validated_and_kept_and_others_trained(tmp_path: Path) -> None:
    plain, averaged = Line(Stage(8, ADAM)), Line(Stage(8, ADAM.model_copy(update={"ema": 0.9})))
    records = [run(learner, tmp_path / name) for learner, name in ((plain, "plain"), (averaged, "averaged"))]
    far = [[record["far"] for record in each if "far" in record] for each in records]
    slopes = [[record["slope"] for record in each if "slope" in record] for each in records]
    assert far[0] == far[1] and plain.slope == averaged.slope
    assert slopes[0][0] == slopes[1][0] < slopes[1][-1] < slopes[0][-1] == plain.slope
    assert float(averaged.best["weight"]) == slopes[1][-1]


def test_the_device_is_waited_for_where_a_record_is_due_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, means = [], Loop._means

    def counted(self: Loop, terms: dict[str, Tensor], done: int) -> dict[str, float]:
        assert all(not value.requires_grad for value in terms.values())
        read.append(done)
        return means(self, terms, done)

    monkeypatch.setattr(Loop, "_means", counted)
    run(Line(Stage(10, ADAM)), tmp_path, log_every=4)
    assert read == [4, 8, 10]


@pytest.mark.parametrize("stages", [1, 2])
def test_a_loss_that_is_not_finite(tmp_path: Path, stages: int) -> None:
    class Exploding(Line):
        def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
            terms = super().terms(model, number, part)
            return {**terms, "far": terms["far"] * (math.inf if self.steps == 4 * stages - 1 else 1)}

    where = "step 3 of stage 2" if stages == 2 else "step 3"
    with pytest.raises(NetspaceError, match=rf"not finite at {where} \(far inf, none .*\): lower the learning rate"):
        run(Exploding(*[Stage(4, ADAM)] * stages), tmp_path, log_every=1)


@pytest.mark.parametrize("of_weights", [False, True])
def test_what_is_not_finite_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_weights: bool) -> None:
    """The gradient of step 3 is infinite, and the loss, or that of the next step alone."""
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", -1.0)

    class Exploding(Line):
        stopped = False

        def terms(self, model: nn.Module, number: int, part: int) -> dict[str, Tensor]:
            terms = super().terms(model, number, part)
            if self.steps == 3:
                if self.stopped:
                    signal.raise_signal(signal.SIGINT)
                error = (model(torch.ones(8, 1)) * math.inf).square().mean()
                terms["far"] = torch.zeros(()) + (error - error.detach()).nan_to_num(0) if of_weights else error
            return terms

    stage = Stage(4, ADAM)
    with pytest.raises(NetspaceError, match="not finite at step 4"):
        run(Exploding(stage), tmp_path, log_every=9, validate_every=9)
    assert read_torch(tmp_path / "last.pt")["step"] == 2
    Exploding.stopped = True
    with pytest.raises(NetspaceError, match=r"^stopped at step 3, after which the loss or weights are not finite, so"):
        run(Exploding(stage), tmp_path, log_every=9, validate_every=9)
    assert read_torch(tmp_path / "last.pt")["step"] == 2
    found = Line(stage)
    run(found, tmp_path)
    assert math.isfinite(found.slope) and read_torch(tmp_path / "last.pt")["step"] == 4


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    run(Line(Stage(2, ADAM)), tmp_path)
    checkpoint = read_torch(tmp_path / "last.pt")
    assert (checkpoint["stage"], checkpoint["step"]) == (0, 2)
    del checkpoint["learner"]
    write_torch(tmp_path / "last.pt", checkpoint)
    with pytest.raises(
        NetspaceError, match=r"last\.pt was expected to hold average, learner, .*, but holds average, mod"
    ):
        run(Line(Stage(2, ADAM)), tmp_path)
