"""`netspace compress fit --bytes` beside entropy-coded rounding at equal likeness: a VGG-like network of digits, an O-net-like one on noise.

    python tools/bench_small_files.py FOLDER [--steps 200] [--short-steps 0] [--images 64] [--width 1] [--bits 1 2]

builds a zoo of one VGG-like network on digits and an O-net-like network (MTCNN's O-net: convolutions, PReLU, three linear heads) of
random weights in FOLDER, fits both, and prints for several budgets the file that is taken and the smallest one of rounding to one
step in units of each layer's root mean square, entropy-coded, that is at least as like the original by the same inputs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from netspace.results.budget import BudgetFit, WayRow

BITS = (1.0, 2.0)  # of a weight, on the average, that the budgets give
CURVE = (
    0.8,
    0.9,
    0.97,
    1.05,
    1.1,
    1.2,
    1.3,
    1.45,
    1.6,
    1.8,
    2.1,
    2.5,
    3.0,
)  # budgets at which rounding is measured too
ONET_SHAPE = (3, 48, 48)
RECIPE = """
name: vgg-digits
seed: 0
data: {{name: digits, image_size: 16}}
archs:
  vgg: {{arch: 'bench_small_files:vgg_like', width: {width}}}
members: {{train: 1, val: 0, test: 0}}
epochs: {{first: {epochs}, last: {epochs}}}
optimizer: {{name: adamw, learning_rate: 0.004, weight_decay: 0.05, schedule: cosine}}
batch_size: 64
prep_width: 2000
"""


def vgg_like(*, channels: int = 1, classes: int = 10, image_size: int = 28, width: float = 1.0) -> nn.Module:
    """Return a network in the manner of VGG (Simonyan and Zisserman, 2015): pairs of 3 x 3 convolutions, pooling, two linear layers."""
    sides = [max(1, round(width * each)) for each in (16, 32, 64)]
    layers: list[nn.Module] = []
    before = channels
    for side in sides:
        for _ in range(2):
            layers += [nn.Conv2d(before, side, 3, padding=1), nn.BatchNorm2d(side), nn.ReLU()]
            before = side
        layers.append(nn.MaxPool2d(2))
    left = image_size // 2 ** len(sides)
    layers += [nn.Flatten(), nn.Linear(before * left**2, 2 * before), nn.ReLU(), nn.Linear(2 * before, classes)]
    return nn.Sequential(*layers)


class ONetLike(nn.Module):
    """Images (B, 3, 48, 48) -> logits of a face (B, 2), its box (B, 4) and landmarks (B, 10), as MTCNN's O-net (Zhang et al., 2016)."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        one, two, three, four, last = (max(2, round(width * each)) for each in (32, 64, 64, 128, 256))
        self.body = nn.Sequential(
            *(nn.Conv2d(3, one, 3), nn.PReLU(one), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(one, two, 3), nn.PReLU(two), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(two, three, 3), nn.PReLU(three), nn.MaxPool2d(2, 2, ceil_mode=True)),
            *(nn.Conv2d(three, four, 2), nn.PReLU(four), nn.Flatten(), nn.Linear(9 * four, last), nn.PReLU(last)),
        )
        self.face, self.box, self.landmarks = nn.Linear(last, 2), nn.Linear(last, 4), nn.Linear(last, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.body(images)
        return self.face(hidden), self.box(hidden), self.landmarks(hidden)


def likeness(row: WayRow) -> float:
    """Return how like the original a network is on validation inputs, more is better."""
    if row.output_error_val is not None:
        return -row.output_error_val
    return -1.0 if row.agreement_val is None else row.agreement_val


def equal(taken: WayRow, rounding: BudgetFit) -> WayRow | None:
    """Return the smallest file of entropy-coded rounding at least as like the original as the one that was taken; None: none tried."""
    rows = [row for row in [*rounding.table, *rounding.sizes] if row.way == "coded" and not row.steps and row.bytes]
    alike = [row for row in rows if likeness(row) >= likeness(taken)]
    return min(alike, key=lambda row: row.bytes or 0, default=None)


def line(name: str, figures: BudgetFit, rounding: BudgetFit) -> str:
    """Return a row of the table."""
    (taken,) = (row for row in figures.table if row.chosen)
    other = equal(taken, rounding)
    largest = max((row.bytes or 0 for row in [*rounding.table, *rounding.sizes]), default=0)
    found = f"more than {largest:,}" if other is None else f"{other.bytes:,}"
    shown = f"{taken.output_error_val:.4f}" if taken.output_error_val is not None else f"{100 * likeness(taken):.1f} %"
    steps = f", {taken.steps} steps" if taken.steps else ""
    return f"| {name} | {figures.bytes_budget:,} | {taken.bytes:,} ({taken.way}{steps}) | {shown} | {found} |"


def run(*words: object) -> None:
    """Run a command of netspace, which finds the architectures of this file."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "netspace", *map(str, words)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=200, help="of the training of the best way")
    parser.add_argument("--short-steps", type=int, default=0, help="of the training with which each way is tried")
    parser.add_argument("--images", type=int, default=64, help="inputs of a batch")
    parser.add_argument("--width", type=float, default=1.0, help="of both networks")
    parser.add_argument("--epochs", type=int, default=4, help="of the VGG-like network")
    parser.add_argument("--bits", type=float, nargs="+", default=BITS, help="budgets, in bits of a weight")
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--set", f"steps={given.steps}", "--set", f"short_steps={given.short_steps}"]
    options += ["--set", f"images={given.images}", "--set", "curve=[]"]
    rounding = ["--way", "coded", "--set", "steps=0", "--set", "short_steps=0", "--set", f"curve={list(CURVE)}"]
    jobs: list[tuple[str, list[object], int]] = []
    vgg = vgg_like(image_size=16, width=given.width)
    arch = ["--trust-arch", "bench_small_files:vgg_like"]
    (folder / "vgg.yaml").write_text(RECIPE.format(width=given.width, epochs=given.epochs))
    if not (folder / "vgg.h5").exists():
        run("zoo", "build", folder / "vgg.yaml", "--out", folder / "vgg.h5", *arch)
    jobs.append(
        ("VGG-like, digits", ["best", "--zoo", folder / "vgg.h5", *arch], sum(v.numel() for v in vgg.parameters()))
    )
    torch.manual_seed(0)
    onet = ONetLike(given.width)
    save_file(onet.state_dict(), folder / "onet.safetensors")
    arch = ["--arch", "bench_small_files:ONetLike", "--trust-arch", "bench_small_files:ONetLike"]
    arch += ["--kwargs", f'{{"width": {given.width}}}', "--input-shape", ",".join(map(str, ONET_SHAPE))]
    jobs.append(("O-net-like, noise", [folder / "onet.safetensors", *arch], sum(v.numel() for v in onet.parameters())))
    print("| network | budget | taken | like the original | entropy-coded rounding as like |\n|---|---|---|---|---|")
    for name, words, count in jobs:
        for bits in given.bits:
            out = folder / f"{name.split()[0].strip(',')}-{bits:g}"
            figures = []
            for folder_of, own in ((out, options), (out.with_name(f"{out.name}-coded"), rounding)):
                if not (folder_of / "fit.json").exists():
                    run("compress", "fit", *words, "--bytes", round(bits * count / 8), "-o", folder_of, *own)
                figures.append(BudgetFit.read(folder_of / "fit.json"))
            print(line(name, *figures), flush=True)


if __name__ == "__main__":
    main()
