"""Unpack the emoji of npm's emoji-datasource-google into a folder of sprites: `python tools/emoji.py OUT`.

    python tools/emoji.py emoji
    netspace zoo build zoo/emoji-scenes --set data.root=emoji --out emoji-scenes.h5

The package (74 MB) is had with `npm pack`; with --source, its file emoji-datasource-google-16.0.0.tgz is read instead, which
https://registry.npmjs.org has, too. Each emoji of 64x64 pixels, without its skin tones, is written to OUT/<group>/<name>.png.
SOURCES.csv next to them names the author and the licence: Noto Emoji by Google, Apache License 2.0; works that show them must
name them.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

from netspace.errors import NetspaceError, UsageError, first_line
from netspace.files import write_bytes, write_text

PACKAGE = "emoji-datasource-google@16.0.0"
URL = "https://registry.npmjs.org/emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz"
LICENCE = ("Noto Emoji, Google", "Apache License 2.0", f"npm {PACKAGE}")
SKIPPED = "Component"  # skin tones by themselves
MAX_BYTES = 1 << 24  # of a file in the package


def download(folder: Path) -> Path:
    """Return the package's file, which `npm pack` writes into a folder. Raises `NetspaceError` if it cannot."""
    if shutil.which("npm") is None:
        raise UsageError(f"npm is not installed here: install it, or get {URL} and name the file with --source")
    done = subprocess.run(
        ["npm", "pack", PACKAGE, "--loglevel=error"], cwd=folder, capture_output=True, text=True, check=False
    )
    files = sorted(folder.glob("*.tgz"))
    if done.returncode or not files:
        last = (done.stderr.strip().splitlines() or ["it wrote no file"])[-1]
        raise NetspaceError(f"`npm pack {PACKAGE}` failed ({last}): get {URL} and name the file with --source")
    return files[0]


def unpack(source: Path, out: Path) -> Counter[str]:
    """Write the emoji of the package's file, and SOURCES.csv; return how many there are of each group.

    Raises `UsageError` if the file is not the package.
    """
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["file", "name", "author", "licence", "source"])
    counts: Counter[str] = Counter()
    try:
        with tarfile.open(source) as archive:
            entries = json.loads(_content(archive, "package/emoji.json"))
            names = {
                f"package/img/google/64/{entry['image']}": entry for entry in entries if entry["category"] != SKIPPED
            }
            for member in archive:
                if member.name not in names:
                    continue
                entry = names[member.name]
                group, name = slug(entry["category"]), f"{slug(Path(entry['image']).stem)}.png"
                write_bytes(out / group / name, _content(archive, member.name))
                writer.writerow([f"{group}/{name}", entry["short_name"], *LICENCE])
                counts[group] += 1
    except (OSError, EOFError, tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{source} is not the file of {PACKAGE} ({first_line(error).rstrip(':')}): get {URL}"
        ) from None
    write_text(out / "SOURCES.csv", table.getvalue())
    return counts


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    """Return the content of a plain file in the package; nothing is unpacked by the names that it has."""
    member = archive.getmember(name)
    file = archive.extractfile(member)
    if file is None or member.size > MAX_BYTES:
        raise ValueError(f"{name} is no plain file of at most {MAX_BYTES:,} bytes")
    return file.read()


def slug(text: str) -> str:
    """Return a text as a name of a file.

    >>> slug("Smileys & Emotion")
    'smileys-emotion'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def main() -> int:
    """Fetch, unpack, count, and print; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder that is written")
    parser.add_argument("--source", type=Path, help="the package's file; without it, npm fetches the package")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            counts = unpack(options.source or download(Path(folder)), options.out)
    except NetspaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{counts.total()} emoji in {options.out} (Noto Emoji, Apache License 2.0: see {options.out}/SOURCES.csv)")
    print("\n".join(f"  {group:20} {count:4}" for group, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
