"""Unpack the furniture of Debian's sweethome3d-furniture into a folder of meshes: `python tools/furniture.py OUT`.

    apt-get download sweethome3d-furniture && dpkg -x sweethome3d-furniture_*.deb unpacked
    python tools/furniture.py furniture --source unpacked/usr/share/sweethome3d/furniture
    netspace zoo build zoo/furniture --set data.root=furniture --out furniture.h5

Where the package is installed (`apt-get install sweethome3d-furniture`), --source is not needed. Chairs, tables and sofas, told
by the words of their names, are written to OUT/<category>/<name>.obj; with --all, all 820 models, the others by the catalogue's
categories. They are turned upright where the catalogue says how. SOURCES.csv next to them names the author, the source and the
licence of each: Creative Commons Attribution 3.0 (Scopia, Kator Legaz, Reallusion, Blend Swap CC-BY) or CC0 (Blend Swap CC-0);
works that show them must name them. Then the usable ones are counted, as `data.name: meshes` counts them.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from netspace.errors import NetspaceError, UsageError
from netspace.files import write_bytes, write_text
from netspace.tasks.mesh_folder import MeshFolder, open_meshes

INSTALLED = Path("/usr/share/sweethome3d/furniture")
CATALOGUE = "PluginFurnitureCatalog.properties"
KINDS = {  # by words of a name
    "chairs": re.compile(r"\b(arm)?chair\b(?! ottoman)"),
    "tables": re.compile(r"\btable\b(?! (fan|tennis))"),
    "sofas": re.compile(r"\b(sofa|couch)\b"),
}
PACKAGE = "Debian sweethome3d-furniture"


@dataclass(frozen=True)
class Model:
    """An entry of a catalogue."""

    archive: Path
    member: str  # of the archive
    name: str  # of the file that is written: category/source-name
    title: str
    creator: str
    licence: str
    rotation: str  # a matrix, row by row; '' for none

    def content(self) -> bytes:
        """Return the OBJ file, turned upright."""
        with zipfile.ZipFile(self.archive) as archive:
            text = archive.read(self.member)
        return turned(text, np.array(self.rotation.split(), dtype=float).reshape(3, 3)) if self.rotation else text


def models(source: Path) -> Iterator[Model]:
    """Yield the models of all catalogues in a folder. Raises `UsageError` if there are none."""
    archives = sorted(source.glob("*.sh3f"))
    if not archives:
        raise UsageError(
            f"there are no .sh3f files in {source}: install {PACKAGE.split()[1]}, or let --source name the folder"
        )
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(CATALOGUE).decode("latin-1")
        licence = re.search(r"^license=(.*)$", text, re.MULTILINE)
        entries: dict[str, dict[str, str]] = defaultdict(dict)
        for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*)$", text, re.MULTILINE):
            entries[number][key] = value.strip()
        for entry in entries.values():
            yield Model(
                path,
                entry["model"].lstrip("/"),
                f"{category(entry)}/{slug(entry['id'])}",
                entry["name"],
                entry["creator"],
                licence[1].strip() if licence else "",
                entry.get("modelRotation", ""),
            )


def category(entry: dict[str, str]) -> str:
    """Return the folder of a model: by the words of its name, else the catalogue's category."""
    kinds = [kind for kind, words in KINDS.items() if words.search(entry["name"].lower())]
    return kinds[0] if kinds else slug(entry["category"])


def slug(text: str) -> str:
    """Return a text as a name of a file.

    >>> slug("Blend Swap CC-BY#ella_chair_f")
    'blend-swap-cc-by-ella-chair-f'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def turned(obj: bytes, rotation: np.ndarray) -> bytes:
    """Return an OBJ file with its vertices multiplied by a matrix; normals are not needed and stay."""
    lines = obj.splitlines()
    rows = [row for row, line in enumerate(lines) if line.startswith(b"v ")]
    vertices = np.array([[float(word) for word in lines[row].split()[1:4]] for row in rows]) @ rotation.T
    for row, vertex in zip(rows, vertices, strict=True):
        lines[row] = ("v " + " ".join(repr(float(value)) for value in vertex)).encode()
    return b"\n".join(lines) + b"\n"


def unpack(source: Path, out: Path, everything: bool = False) -> list[Model]:
    """Write the models of `KINDS`, or all, and SOURCES.csv; return the models. Raises as `models`."""
    found = [each for each in models(source) if everything or each.name.partition("/")[0] in KINDS]
    found.sort(key=lambda model: model.name)
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["shape", "title", "creator", "licence", "source"])
    for model in found:
        write_bytes(out / f"{model.name}.obj", model.content())
        writer.writerow([model.name, model.title, model.creator, model.licence, f"{PACKAGE}, {model.archive.name}"])
    write_text(out / "SOURCES.csv", table.getvalue())
    return found


def report(found: MeshFolder) -> str:
    """Return how many meshes are usable: by category, and why the others are not."""
    good = Counter(Path(name).parts[0] for name in found.names)
    bad = Counter(Path(name).parts[0] for name in found.refused)
    lines = [f"{found.count} of {found.count + len(found.refused)} are usable as shapes"]
    lines += [f"  {name:20} {good[name]:4} of {good[name] + bad[name]:4}" for name in sorted({*good, *bad})]
    reasons = Counter(re.split(r"[:(]", reason)[0].strip() for reason in found.refused.values())
    lines += [f"{count} refused: {re.sub(r'[0-9,]+', 'N', reason)}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def main() -> int:
    """Unpack, count, and print; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder that is written")
    parser.add_argument("--source", type=Path, default=INSTALLED, help="folder of the .sh3f files")
    parser.add_argument("--all", action="store_true", help="also what is no chair, table or sofa")
    options = parser.parse_args()
    try:
        unpacked = unpack(options.source, options.out, options.all)
        print(
            f"{len(unpacked)} models in {options.out}, from {PACKAGE} (CC-BY 3.0 or CC0: see {options.out}/SOURCES.csv)"
        )
        with warnings.catch_warnings(action="ignore"):  # of what is refused, which is counted below
            print(report(open_meshes(options.out)))
    except NetspaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
