"""The part of docs/benchmarks-spaces.md on spaces of several architectures, from their run folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from space_tables import COLUMNS, NAMES, SAW_TEST, WITHIN_A_RUN, beaten, best_baseline, identity

POINTS_UNDER = 0.02  # that predicted networks of a class may score under its targets
MIN_RATIO = 0.9  # of normally trained networks' accuracy, for architectures not seen in training
SECONDS = 15 * 60  # of training
NEARLY_ONE = 0.2  # predicted networks whose pairwise distance is less than so much of the zoo's are nearly one network


def several(multi: Path, unseen: Path | None) -> str:
    """Return aims and figures of a run trained on all its architectures, and of one trained on the smallest and largest."""
    figures = json.loads((multi / "eval-test.json").read_text())
    parts = [
        "## Several architectures in one space\n\nBy `netspace zoo build zoo/multi-digits`, `train space/multi-digits`, `eval`; "
        f"`train space/multi-digits-unseen`, `eval`; test networks, test images. {WITHIN_A_RUN} {SAW_TEST['multi']}",
        _aims(figures, multi, unseen),
        _by_class(figures),
    ]
    if unseen:
        parts.append(_between(json.loads((unseen / "eval-test.json").read_text())))
    optimizations = [json.loads(file.read_text()) for file in sorted((multi / "optimized").glob("*/optimize.json"))]
    if optimizations:
        parts.append(_optimised(optimizations))
    return "\n\n".join(parts)


def several_sentence(multi: Path, unseen: Path) -> str:
    """Return the README's sentences on spaces of several architectures."""
    figures = json.loads((multi / "eval-test.json").read_text())
    between = json.loads((unseen / "eval-test.json").read_text())["between"]
    least = min(each["ratio"] for each in between.values())
    kinds = ", ".join(f"{name} {each['accuracy_predicted']:.1%}" for name, each in figures["per_class"].items())
    targets = ", ".join(f"{each['accuracy_target']:.1%}" for each in figures["per_class"].values())
    return (
        f"Four architectures in one space (digits, {figures['members']} test networks): every latent's architecture is read right in "
        f"{figures['classid_accuracy']:.0%}; predicted networks score {kinds}, their targets {targets}. {_alike(figures)} "
        f"A space that was trained on the smallest and the largest alone gives the two between at {least:.0%} or more of normally "
        f"trained networks' accuracy: {_controls(between)}."
    )


def _alike(figures: dict[str, Any]) -> str:
    """Return a sentence on how similar predicted networks of a class are, and on a lookup of training networks."""
    known = [
        each for each in figures["per_class"].values() if each["diversity"] == each["diversity"]
    ]  # not NaN: of several
    own, zoo = ([each[key] for each in known] for key in ("diversity", "zoo_diversity"))
    if not known:
        return "No two networks of a class were predicted as such."
    nearly = "are nearly one network" if max(a / b for a, b in zip(own, zoo, strict=True)) < NEARLY_ONE else "differ"
    agreement = next(column for column in COLUMNS if column.key == "agreement")
    nearest = {key: value for key, value in figures["baselines"].items() if key.startswith(("nearest", "five"))}
    name, value = best_baseline({"baselines": nearest}, agreement) or ("nearest", float("nan"))
    compared = "at least as often" if value >= figures["agreement"] else "less often"
    return (
        f"But predicted networks of a class {nearly}: their pairwise distance is {min(own):.1f} to {max(own):.1f} where the zoo's is "
        f"{min(zoo):.0f} to {max(zoo):.0f}, and a lookup ({NAMES[name]}) agrees {compared} with the target: {value:.1%}, the "
        f"predicted networks {figures['agreement']:.1%}."
    )


def _controls(between: dict[str, Any]) -> str:
    """Return the accuracies of architectures not seen in training, with the controls."""
    return "; ".join(
        f"{name} {each['accuracy']:.1%}, with the learnt part off {_percent(each.get('accuracy_scale_zero'))}, a network distilled "
        f"from the teacher for as many steps {_percent(each.get('accuracy_distilled'))}"
        for name, each in between.items()
    )


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1%}"


def seconds(run: Path) -> float:
    """Return the time of a run's steps, validations included, from the records of its speed."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = [record for record in records if "steps_a_second" in record]
    before = [0, *(record["step"] for record in timed)]
    return float(
        sum((record["step"] - last) / record["steps_a_second"] for record, last in zip(timed, before, strict=False))
    )


def _aims(figures: dict[str, Any], multi: Path, unseen: Path | None) -> str:
    under = max(each["accuracy_target"] - each["accuracy_predicted"] for each in figures["per_class"].values())
    rows = [
        ("ClassId of test networks", "100 %", f"{figures['classid_accuracy']:.1%}", figures["classid_accuracy"] == 1),
        (
            "mean accuracy of a class's predicted networks under its targets', at worst",
            f"<= {100 * POINTS_UNDER:.0f} points",
            f"{100 * under:.1f} points",
            under <= POINTS_UNDER,
        ),
        ("training", f"<= {SECONDS // 60} minutes", f"{seconds(multi) / 60:.1f}", seconds(multi) <= SECONDS),
    ]
    if unseen:
        between = json.loads((unseen / "eval-test.json").read_text())["between"]
        for name, each in between.items():
            assert not each["shown"], f"{unseen} was trained on networks of {name}"
            what, ratio = f"{name}, unseen: accuracy to normally trained", each["ratio"]
            rows.append((what, f">= {MIN_RATIO:.0%}", f"{ratio:.1%}", ratio >= MIN_RATIO))
    optimizations = [json.loads(file.read_text()) for file in sorted((multi / "optimized").glob("*/optimize.json"))]
    if optimizations:
        gains = [
            after - before
            for each in optimizations
            for after, before in zip(each["accuracy_after"], each["accuracy_before"], strict=True)
        ]
        what = "latent optimisation, least gain over a decoded start"
        rows.append((what, ">= 0", f"{100 * min(gains):.1f} points", min(gains) >= 0))
        own = [
            after - network
            for each in optimizations
            for after, network in zip(each["accuracy_after"], each["accuracy_network"], strict=True)
            if network is not None
        ]
        rows.append(("the same over the network itself", ">= 0", f"{100 * min(own):.1f} points", min(own) >= 0))
    rows.append(
        ("the paper's step on a GPU (`tools/bench.py multi --device cuda`)", "<= 25 ms", "not measured, no GPU", False)
    )
    body = "\n".join(f"| {what} | {aim} | {value} | {'yes' if ok else 'NO'} |" for what, aim, value, ok in rows)
    return f"| figure | target | reached | holds |\n|---|---|---|---|\n{body}"


def _by_class(figures: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {each['parameters']:,} | {each['members']} | {each['accuracy_target']:.1%} | "
        f"{each['accuracy_predicted']:.1%} | {each['classid_accuracy']:.1%} | {each['agreement']:.1%} | "
        f"{each['diversity']:.2f} ({each['zoo_diversity']:.2f}) | {_over(each)} |"
        for name, each in figures["per_class"].items()
    ]
    others = ", ".join(
        f"{NAMES.get(name, name)} {each['accuracy_predicted']:.1%} (agreement {each['agreement']:.1%})"
        for name, each in figures["baselines"].items()
        if each
    )
    missing = [NAMES.get(name, name) for name, each in figures["baselines"].items() if not each]
    lost = [column.name for column in COLUMNS if beaten(figures, column)]
    return (
        "| architecture | parameters | networks | targets | predicted | ClassId | agreement | pairwise L2 (zoo) | own over peers |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\nAll: predicted {figures['accuracy_predicted']:.1%}, "
        f"agreement {figures['agreement']:.1%}, R2 {figures['r2']:.2f}. {identity(figures)}Baselines: {others}"
        + (f"; missing: {', '.join(missing)}" if missing else "")
        + (f". A baseline does better in: {'; '.join(lost)}." if lost else ". None does better in any column.")
    )


def _over(each: dict[str, Any]) -> str:
    value = (each.get("identity") or {}).get("own_minus_peers")
    return "-" if value is None else f"{100 * value:+.1f}"


def _between(figures: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {each['gamma']:.3f} | {each['pairs']} | {each['classid_accuracy']:.1%} | {each['accuracy']:.1%} | "
        f"{each['accuracy_least']:.1%} | {each['accuracy_zoo']:.1%} | {each['ratio']:.1%} | "
        f"{_percent(each.get('accuracy_scale_zero'))} | {_percent(each.get('accuracy_distilled'))} |"
        for name, each in figures["between"].items()
    ]
    return (
        "Between the ends, of architectures not seen in training; two controls: decoded with the decoder's learnt part off (scale "
        "0), and a network distilled from the space's teacher for as many steps as the space was trained:\n\n"
        "| architecture | gamma | pairs | ClassId | decoded | least | normally trained | ratio | scale 0 | distilled |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n" + "\n".join(rows)
    )


def _optimised(optimizations: list[dict[str, Any]]) -> str:
    rows = []
    for each in optimizations:
        for index, name in enumerate(each["from"]):
            own, before, after = (each[f"accuracy_{key}"][index] for key in ("network", "before", "after"))
            rows.append(
                f"| {name} | {each['arch'][index]} | {'-' if own is None else f'{own:.1%}'} | {before:.1%} | {after:.1%} | "
                f"{100 * (after - before):+.1f} |"
            )
    return (
        "`netspace optimize` in this space, taught by the zoo's teacher (the paper's Table I):\n\n"
        "| start | architecture | the network | decoded | optimised | points |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
    )
