"""What a report could not show: one sentence for each part, with the command that makes it."""

from __future__ import annotations

import shlex

from netspace.report.collect import Run


def missing(run: Run) -> list[tuple[str, str]]:
    """(chapter, one sentence) for what could not be shown, with what makes it."""
    place, told = shlex.quote(str(run.path)), []
    main = run.evaluations.get("test")
    if main is None:
        told.append(
            (
                "behaviour",
                f"The test split has not been evaluated yet: `netspace eval {place}` measures it, beside baselines.",
            )
        )
    if not run.lines:
        several, ends = len(run.order) > 1, run.order
        way = "--from worst --to best"
        if several:  # a step of each tenth from one class to the next
            way = f"--from worst:{ends[0]} --to best:{ends[-1]} --steps {10 * (len(ends) - 1) + 1}"
        command = f"netspace interpolate {way} --run {place}"
        told.append(
            (
                "lines",
                f"No interpolation between two chosen networks has been made yet: `{command}` makes one.",
            )
        )
    for split, found in run.evaluations.items():
        if found.classes is not None and not found.classes.line:
            both = f"{found.classes.archs[0]} and {found.classes.archs[-1]}"
            told.append(
                ("lines", f"The {split} split has no members of both {both}, so nothing between them was measured.")
            )
        if found.tensors is None:
            again = f"`netspace eval {place} --split {split}`"
            sentence = f"Latents and PReps of the {split} split are missing or of another evaluation"
            sentence = f"{sentence}: {again} writes them."
            told.append(("preps", sentence))
    if not run.records:
        told.append(("training", "The folder holds no metrics.jsonl, so the course of the training cannot be shown."))
    return told
