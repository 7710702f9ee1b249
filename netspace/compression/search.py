"""The search for the best way to hold a network in a number of bytes: what is tried, chosen, trained and reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from torch import Tensor

from netspace.compression.coordinate import way_of
from netspace.compression.judging import Part, merit
from netspace.compression.originals import comparable, save_kernels
from netspace.compression.rivals import RIVALS, STUDENT
from netspace.compression.trained import predictors, short_fits, whole_fits
from netspace.compression.ways import UNTRAINED, Candidate
from netspace.compression.work import WAYS, CannotFit, NotInstalled, Work
from netspace.errors import NetspaceError, UsageError
from netspace.files import write_bytes
from netspace.models.coded import Coded
from netspace.models.coded_predictor import AnyCompressed, CodedPredictor, load_any
from netspace.networks.kernels import Kernels
from netspace.progress import progress
from netspace.results.budget import BudgetFit, Measured, Tried, WayRow

FILE = "compressed.safetensors"
CANDIDATES = "candidates"  # the folder of what was tried
LAST = "last.pt"  # the checkpoint of a training, which nothing needs once there is a record of the whole
CLOSE = 1.03  # ratio of two sizes between which no other is looked for
SMALLER = 0.8  # of the bytes, at which a trained network is tried too if only the accuracy counts
MAX_SMALLER = 3  # such trials
BASIS = {
    "task": "accuracy on validation images",
    "pictures": "answers like the original's on pictures",
    "noise": "answers like the original's on noise",
    "weights": "relative error of the weights",
}


class Search:
    """The ways of one network, tried at sizes; what was done before is read from the folder."""

    def __init__(self, work: Work) -> None:
        self.work, self.config = work, work.config
        self.folder = work.folder / CANDIDATES
        self.names = WAYS if self.config.way is None else (self.config.way,)
        self.untrained = {name: make for name, make in UNTRAINED.items() if name in self.names}
        self.channels: dict[str, Tensor] | None = None  # the network with its channels in order

    @cached_property
    def lossless(self) -> int:
        """The bytes of the file that has every weight as it is."""
        return Coded.of(self.work.original.state, {}, spec=self.work.spec).file_bytes()

    @cached_property
    def accuracy(self) -> float:
        """The original's accuracy on validation images."""
        return self.work.judge.measure(self.work.original.state).accuracy or 0.0

    def check(self) -> None:
        """Raise `UsageError` for a budget that cannot be met, before anything is written."""
        limit = self.config.budget.limit(self.work.judge.bytes)
        if limit is not None:
            if limit < self.lossless and limit < (least := self.least()):
                raise UsageError(
                    f"no way{self._named()} holds {self.work.model} in {limit:,} bytes: the smallest file has {least:,} bytes, "
                    "and few weights are left in it; give more bytes"
                )
            return
        if self.work.judge.inputs.kind != "task":
            raise UsageError(
                f"--accuracy-drop is about labelled images, and those of {self.work.model} are not known: give the --zoo of its "
                "task, or --bytes"
            )
        if not self.untrained:
            raise UsageError(
                f"--accuracy-drop finds a size by ways that need no training, and {self.names[0]} is trained for a size: give "
                "--bytes"
            )

    def least(self) -> int:
        """Return the fewest bytes that one of the ways takes."""
        makes = [*self.untrained.values(), *([way_of("none")] if "coordinate" in self.names else [])]
        found = []
        for make in makes:
            try:
                make(self.work, 0, self.folder / "none.safetensors")
            except CannotFit as refused:
                found += [] if refused.least is None else [refused.least]
        return min(found) if found else self.lossless

    def run(self) -> BudgetFit:
        """Try, choose and train; write the file of the best network, and return the figures of all."""
        limit, others = self.config.budget.limit(self.work.judge.bytes), list[Tried]()
        if limit is not None and limit >= self.lossless:
            return self.report(limit, [self.attempt("lossless", Candidate("lossless", _lossless), limit)], [])
        if limit is None:
            limit, others = self.accurate()
        candidates = {name: Candidate(name, make) for name, make in self.untrained.items()}
        if "coordinate" in self.names:
            candidates |= predictors(self.work)
        candidates |= short_fits(self.work, self.names)
        sizes = [round(limit * factor) for factor in self.config.curve]
        with progress("ways", len(candidates) + 1 + len(self.untrained) * len(sizes), "files") as bar:
            tried = []
            for key, candidate in candidates.items():
                tried.append(self.attempt(key, candidate, limit))
                bar.advance(note=_note(tried[-1]))
            best = max((each for each in tried if each.bytes is not None), key=_merit, default=None)
            if best is None:
                whys = "; ".join(f"{each.way}: {each.note}" for each in tried if each.note)
                raise NetspaceError(f"{self.work.model} cannot be held in {limit:,} bytes: {whys}")
            tried += self.whole(best, limit)
            bar.advance(note=_note(tried[-1]))
            for size in sizes:
                for each in self.plain(size):
                    others.append(each)
                    bar.advance(note=_note(each))
        if self.config.budget.accuracy_drop is not None:
            limit, tried, more = self.smaller(limit, tried)
            others += more
        if self.config.rivals:
            tried += [self.attempt_rival(name, limit) for name in RIVALS]
        return self.report(limit, tried, others)

    def plain(self, size: int) -> Iterator[Tried]:
        """Yield what the ways without training make of the network in `size` bytes."""
        for name, make in self.untrained.items():
            yield self.attempt(name, Candidate(name, make), size)

    def whole(self, best: Tried, limit: int) -> list[Tried]:
        """Train the best of what was tried for as long as the settings say."""
        return [self.attempt(key, each, limit) for key, each in whole_fits(self.work, best).items()]

    def attempt(self, key: str, candidate: Candidate, limit: int) -> Tried:
        """Return what a way makes of the network in `limit` bytes, from the folder if it is there."""
        record, file = self.folder / f"{key}-{limit}.json", self.folder / f"{key}-{limit}.safetensors"
        if record.is_file():
            before = Tried.read(record)
            if before.bytes is None or file.is_file():
                return before
        self.folder.mkdir(parents=True, exist_ok=True)
        common = {
            "way": candidate.way,
            "budget": limit,
            "steps": candidate.steps,
            "file": str(file.relative_to(self.work.folder)),
        }
        try:
            setting = candidate.make(self.work, limit, file)
        except CannotFit as refused:
            tried = Tried(**common, note=str(refused))
        else:
            tried = Tried(**common, setting=setting, bytes=file.stat().st_size, val=self.measure(file, "val"))
        tried.write(record)
        (file.with_suffix("") / LAST).unlink(missing_ok=True)
        return tried

    def attempt_rival(self, name: str, limit: int) -> Tried:
        """Return what a rival makes of the network in `limit` bytes, from the folder if it is there."""
        record, file = self.folder / f"rival-{name}-{limit}.json", self.folder / f"rival-{name}-{limit}.safetensors"
        if record.is_file():
            return Tried.read(record)
        judge = self.work.judge
        try:
            made = RIVALS[name](self.work, limit, file)
        except NotInstalled as refused:  # which is not remembered
            return Tried(way=name, budget=limit, rival=True, note=str(refused))
        except CannotFit as refused:
            tried = Tried(way=name, budget=limit, rival=True, note=str(refused))
        else:
            val, test = (judge.measure(made.state, part, made.module) for part in ("val", "test"))
            tried = Tried(
                way=name,
                setting=made.setting,
                budget=limit,
                bytes=made.size,
                rival=True,
                steps=made.steps,
                val=val,
                test=test,
            )
        tried.write(record)
        (self.work.folder / STUDENT / LAST).unlink(missing_ok=True)
        return tried

    def measure(self, file: Path, part: str) -> Measured:
        """Return the figures of a file on the inputs to choose by ('val'), or on those to report on ('test')."""
        loaded = load_any(file)
        split: Part = "val" if part == "val" else "test"
        return self.work.judge.measure(loaded.reconstruct(), split, reference=self.expected(loaded))

    def expected(self, loaded: AnyCompressed) -> dict[str, Tensor]:
        """Return what the weights of a file are compared with; channels are put in order once."""
        if not (isinstance(loaded, CodedPredictor) and loaded.channels is not None):
            return self.work.original.state
        if self.channels is None:
            self.channels = comparable(self.work.original, loaded, self.work.model)
        return self.channels

    def accurate(self) -> tuple[int, list[Tried]]:
        """Return the smallest size at which a way without training keeps the accuracy on validation images, and all trials.

        Raises `NetspaceError` if there is none.
        """
        trials: list[Tried] = []

        def keeps(size: int) -> bool:
            for name in sorted(self.untrained, key=lambda name: name != "coded"):  # the likeliest one first
                trials.append(self.attempt(name, Candidate(name, self.untrained[name]), size))
                if self.kept(trials[-1]):
                    return True
            return False

        low, high = self.least(), self.lossless - 1
        if not keeps(high):
            best = max(trials, key=_merit)
            raise NetspaceError(
                f"no way{self._named()} keeps the accuracy of {self.work.model} within {self.config.budget.accuracy_drop:g} points: "
                f"the best has {_percent(best.val.accuracy)} in {best.bytes or 0:,} bytes on validation images, the original "
                f"{_percent(self.accuracy)}; allow a larger drop"
            )
        with progress("size", 1, "searches") as bar:
            while high / low > CLOSE:
                middle = round((low * high) ** 0.5)
                low, high = (low, middle) if keeps(middle) else (middle, high)
                bar.advance(0, f"at most {high:,} bytes")
        return high, trials

    def smaller(self, limit: int, tried: list[Tried]) -> tuple[int, list[Tried], list[Tried]]:
        """Return a smaller size at which a trained network keeps the accuracy, what was tried at it, and the rest."""
        others: list[Tried] = []
        best = max((each for each in tried if each.bytes is not None), key=_merit)
        for _ in range(MAX_SMALLER):
            size = round(limit * SMALLER)
            trained = [each for each in self.whole(best, size) if self.kept(each)]
            if not trained:
                break
            others, limit, tried = [*others, *tried], size, [*self.plain(size), *trained]
        return limit, tried, others

    def kept(self, tried: Tried) -> bool:
        """Return whether a network's accuracy on validation images is within the drop that is allowed."""
        drop, accuracy = self.config.budget.accuracy_drop or 0.0, tried.val.accuracy
        return accuracy is not None and accuracy >= self.accuracy - drop / 100 - 1e-9

    def report(self, limit: int, tried: list[Tried], others: list[Tried]) -> BudgetFit:
        """Write the file of the best network, and return all figures."""
        work = self.work
        rows = [each if each.rival or each.bytes is None else self._reported(each) for each in _best_of_ways(tried)]
        own = [each for each in rows if not each.rival and each.bytes is not None]
        best = max(own, key=_merit)
        assert best.bytes is not None and best.file is not None and best.test is not None
        path = work.folder / FILE
        write_bytes(path, (work.folder / best.file).read_bytes())
        loaded = load_any(path)
        with suppress(NetspaceError):  # a network without convolutions has no kernels to draw
            kernels = Kernels.of(work.original.state, module=work.original.module)
            save_kernels(work.folder, kernels, self.expected(loaded), loaded.reconstruct())
        files = {each.file for each in rows if not each.rival}
        others = [
            each for each in [*tried, *others] if each.bytes is not None and not each.rival and each.file not in files
        ]
        return BudgetFit(
            file=str(path),
            way=best.way,
            why=self._why(best, own),
            inputs=work.judge.inputs.kind,
            bytes_budget=limit,
            bytes_original=work.judge.bytes,
            bytes_file=best.bytes,
            larger=best.bytes > work.judge.bytes,
            accuracy_original=work.judge.measure(work.original.state, "test").accuracy,
            accuracy_reconstructed=best.test.accuracy,
            agreement=best.test.agreement,
            relative_error=best.test.relative_error,
            output=work.config.output,
            output_error=best.test.output_error,
            accuracy_original_val=work.judge.measure(work.original.state).accuracy,
            **loaded.sizes(),
            table=[_row(each, each is best) for each in rows],
            sizes=[_row(each, False) for each in others],
        )

    def _reported(self, tried: Tried) -> Tried:
        """Return a trial with its figures on what is there to report on."""
        if tried.test is not None or tried.file is None:
            return tried
        path = self.work.folder / tried.file
        whole = tried.extended(Tried, test=self.measure(path, "test"))
        whole.write(path.with_suffix(".json"))
        return whole

    def _why(self, best: Tried, own: list[Tried]) -> str:
        if best.way == "lossless":
            return f"the network fits as it is: every weight is kept, in {best.bytes or 0:,} bytes"
        second = max((each for each in own if each.way != best.way), key=_merit, default=None)
        kind = self.work.judge.inputs.kind
        basis = BASIS[kind] if best.val.output_error is None else f"relative error of outputs on {kind}"
        ahead = "" if second is None else f"; the next, {second.way}{_trained(second)}, {_decisive(second, kind)}"
        return f"{best.way}{_trained(best)} is best by {basis}: {_decisive(best, kind)}{ahead}"

    def _named(self) -> str:
        return "" if self.config.way is None else f" ({self.config.way})"


def _lossless(work: Work, limit: int, path: Path) -> str:
    """Write the network as it is."""
    Coded.of(work.original.state, {}, spec=work.spec).save(path)
    return "every weight as it is"


def _best_of_ways(tried: Sequence[Tried]) -> list[Tried]:
    """Return the best trial of each way, or one that says why there is none, in their first order."""
    best: dict[str, Tried] = {}
    for each in tried:
        before = best.get(each.way)
        if before is None or (each.bytes is not None and (before.bytes is None or _merit(each) > _merit(before))):
            best[each.way] = each
    return list(best.values())


def _merit(tried: Tried) -> tuple[float, float, float]:
    return merit(tried.val)


def _trained(tried: Tried) -> str:
    return f" (trained for {tried.steps:,} steps)" if tried.steps else ""


def _decisive(tried: Tried, kind: str) -> str:
    if tried.val.output_error is not None:
        return f"{tried.val.output_error:.4g}"
    value = tried.val.accuracy if kind == "task" else tried.val.agreement
    return f"{tried.val.relative_error or 0:.4f}" if kind == "weights" else _percent(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _note(tried: Tried) -> str:
    return f"{tried.way} in {tried.bytes:,} bytes" if tried.bytes is not None else f"{tried.way} cannot"


def _row(tried: Tried, chosen: bool) -> WayRow:
    test = tried.test or Measured()
    return WayRow(
        way=tried.way,
        bytes=tried.bytes,
        accuracy=test.accuracy,
        agreement=test.agreement,
        relative_error=test.relative_error if tried.test else tried.val.relative_error,
        accuracy_val=tried.val.accuracy,
        agreement_val=tried.val.agreement,
        output_error=test.output_error,
        output_error_val=tried.val.output_error,
        setting=tried.setting,
        steps=tried.steps,
        rival=tried.rival,
        chosen=chosen,
        note=tried.note,
    )
