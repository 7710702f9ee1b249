"""The networks that a space's validation latents stand for, decoded at other widths, as a table.

    python tools/widths_table.py RUN ARCH WIDTH [WIDTH ...]

Of a space of one architecture with a coordinate decoder (`space/quickstart-coordinate`). Accuracy and agreement with the networks
that the latents were encoded from, means over validation members, on validation images.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from netspace.commands.convert import zoo_of
from netspace.errors import NetspaceWarning
from netspace.space import Space
from netspace.training.setup import task_of
from netspace.training.validation import accuracies, network_outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("arch", help="one of the space's architectures")
    parser.add_argument("widths", type=float, nargs="+")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", NetspaceWarning)  # the table says which widths were trained
    space = Space.load(arguments.run)
    sizes = space.recipe.sizes.archs.values() if space.recipe.sizes else ()
    listed = {each.width for each in sizes} | {space.arch_class(arguments.arch).spec.settings.get("width")}
    with zoo_of(arguments.run) as zoo:
        task, group = task_of(zoo, space.device), zoo.group(arguments.arch)
        preps = group.read(group.rows("val"))
        own = space.networks(preps, arguments.arch)
        targets, latents = network_outputs(own, task, "val"), space.encode_preps(preps, arguments.arch)
        print(f"targets: {accuracies(own, task, 'val').mean():.1%}")
        print("| width | parameters | | accuracy | agreement with the latent's own network |\n|---|---|---|---|---|")
        for width in arguments.widths:
            resized = space.resized(arguments.arch, width)
            networks = resized.decode_all(latents)
            agreement = task.agreement(targets, network_outputs(networks, task, "val")).mean()
            print(
                f"| {width:.2f} | {resized.arch_class().parameters:,} | {'trained' if width in listed else 'never seen'} | "
                f"{accuracies(networks, task, 'val').mean():.1%} | {agreement:.1%} |"
            )


if __name__ == "__main__":
    main()
