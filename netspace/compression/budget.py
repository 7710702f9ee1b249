"""`netspace compress fit --bytes`: the best network in a number of bytes, whatever way it is held.

Each way is tried with little or no training, the best of them by what there is to choose by is trained whole, and all are
reported on what chose nothing. Everything that is done is kept in the folder, so that a stopped search goes on.
"""

from __future__ import annotations

import time
from pathlib import Path

from netspace.archs import ArchConfig, trust_options
from netspace.compression.fit import network_hash
from netspace.compression.judging import Inputs, Judge
from netspace.compression.origin import begun_with, origin_of
from netspace.compression.originals import Pictures, find_original
from netspace.compression.search import Search
from netspace.compression.work import BudgetConfig, Work
from netspace.errors import UsageError
from netspace.files import remove_leftovers
from netspace.results.budget import BudgetFit
from netspace.results.compressed import NetworkMark
from netspace.run_folder import FIT, RunFolder, provenance
from netspace.tasks.readers import normalisation


def fit_budget(
    model: str,
    out: Path,
    config: BudgetConfig,
    zoo_path: Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    arch: ArchConfig | None = None,
    key: str | None = None,
) -> BudgetFit:
    """Find the best network within a budget; write `compressed.safetensors`, `fit.json` and what was tried to `out`.

    `model` is a member of the zoo, or a state-dict file of any module, of which `arch` may say what runs it. Ways are chosen
    by accuracy on validation images if the task is known; else by answers to pictures or noise like the original's; else by
    the relative error of the weights. Networks that do not classify are compared by the relative error of their outputs, or of the
    one that the settings name. What is not given of a resumed fit is as it was begun. Files are made on the CPU, networks are run on the device. What is reported is measured on test images, or on other pictures or noise.

    Raises:
        UsageError: before anything is written, for settings and networks that do not go together, a budget too small for
            every way, and a folder that was begun with others.
        NetspaceError: no way keeps the accuracy that was asked for; as `find_original` and `Judge`.

    >>> config = BudgetConfig.model_validate({"budget": {"bytes": 4000}, "way": "rounded", "steps": 0, "curve": []})
    >>> result = fit_budget("best", folder, config, zoo)  # the path of a zoo file
    >>> result.way, (folder / "compressed.safetensors").stat().st_size <= 4000
    ('rounded', True)
    """
    begun_at = time.monotonic()
    zoo_words = [] if zoo_path is None else ["--zoo", str(zoo_path)]
    folder = RunFolder.of(FIT, out, trust_options(), again=[model, *zoo_words])
    zoo_path, arch, _, key = begun_with(folder, resume, zoo_path, arch, None, key)  # the shape is among the settings
    original, spec = find_original(model, zoo_path, device, arch, key)
    pictures = None
    if config.pictures is not None:
        pictures = Pictures(Path(config.pictures), config.picture_size, normalisation(config.normalise))
    if original.input_shape is None:
        original.input_shape = config.input_shape
    inputs = Inputs.of(original, model, pictures, config.input_shape, config.seed)
    judge = Judge(original, inputs, model, config.output, config.compare, device)
    work = Work(model, original, spec, judge, config, out)
    search = Search(work)
    with folder.locked("written"):
        folder.check(config, resume)
        mark, network = out / "network.json", NetworkMark(hash=network_hash(original))
        if not folder.begun:
            search.check()
            network.write(mark)
        elif NetworkMark.read(mark).hash != network.hash:
            raise UsageError(
                f"{out} was begun with another network: resume it with its own (`{folder.command}`), or choose another --out"
            )
        whole = not folder.begun
        folder.begin(config, provenance(config.seed, **origin_of(model, zoo_path, arch, config.input_shape, key)))
        remove_leftovers(search.folder)
        result = search.run()
        seconds = round(time.monotonic() - begun_at, 1) if whole else None  # the time of a resumed fit is not known
        result.extended(BudgetFit, seconds=seconds).write(out / "fit.json")
    return BudgetFit.read(out / "fit.json")
