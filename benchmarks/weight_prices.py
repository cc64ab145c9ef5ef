"""The price lists of docs/weights.md, all of them: `python -m benchmarks.weight_prices ../shared/data docs/weights.md`.

Every real model that is there, on the first TinyStories of the training set; methods that need text learn from the
stories after those. `--models lantern` for one of them; `--speed` where the machine is otherwise idle. `--formats
"int5; int4 by mixed"` measures these alone and puts them among the others.
"""

from __future__ import annotations

import argparse
import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

JUDGED_CHARACTERS = 12_000
TOKENS = {"lantern": (2048, 26_624), "stories260K": (2048, 32_768), "bitnet-stories-3M": (2048, 8192)}
"""Model -> tokens that it is judged on, and tokens that methods learn from."""


def texts(data: Path, folder: Path, characters: int = JUDGED_CHARACTERS) -> tuple[Path, Path]:
    """Files of the stories to judge on, the first ``characters``, and of those to learn from."""
    whole = gzip.decompress((data / "text/tinystories_train_head.txt.gz").read_bytes()).decode()
    cut = whole.index("\n\n", characters)
    judged, learned = folder / "judged.txt", folder / "learned.txt"
    judged.write_text(whole[:cut])
    learned.write_text(whole[cut:])
    return judged, learned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--models", nargs="*", default=list(TOKENS), choices=list(TOKENS))
    parser.add_argument("--formats", help="by semicolons; the others stay as they are on the page")
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        judged, learned = texts(args.data, Path(scratch))
        for name in args.models:
            model = name if name == "lantern" else str(args.data / "models" / name)
            num_judged, num_learned = TOKENS[name]
            command = [
                sys.executable, "-m", "pagoda", "bench", "weights", model, "--text", str(judged), "--tokens",
                str(num_judged), "--calibration", str(learned), "--calibration-tokens", str(num_learned),
                "--speed" if args.speed else "--no-speed", "--docs", str(args.page), "--out", scratch,
            ]  # fmt: skip
            subprocess.run([*command, "--formats", args.formats, "--add"] if args.formats else command, check=True)
            drawing = Path(scratch) / f"weights-{name}.svg"
            (args.page.parent / "img" / drawing.name).write_text(drawing.read_text())


if __name__ == "__main__":
    main()
