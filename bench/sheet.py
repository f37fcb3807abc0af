"""Draw the sheet of pictures that README and the model card show: prompts/eval/sheet.txt, seeds 0 to 3, unpicked.

    python -m bench.sheet MODEL --into docs/sheet.webp [--data DIR --nearest docs/nearest.webp]

--nearest draws the same pictures once more, each beside the picture of the data set that the evaluator finds most like it:
how much does the model copy? DIR is what `ddgen data build stickers` wrote; all its pictures are looked at, scenes too.
"""

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ddgen.app import judge, keying
from ddgen.app.keying import Pixels
from ddgen.app.pipeline import Pipeline
from ddgen.app.sheet import draw

PROMPTS = Path(__file__).resolve().parents[1] / "prompts" / "eval" / "sheet.txt"
SEEDS = range(4)
WIDE = 8  # prompts in a row
SMALL = 64  # pixels of the nearest pictures


def laid_out(pictures: Sequence[Pixels]) -> bytes:
    """Return pictures as a WebP: a prompt's seeds below one another, WIDE prompts beside each other."""
    columns = [np.concatenate(pictures[i : i + len(SEEDS)]) for i in range(0, len(pictures), len(SEEDS))]
    blank = np.full_like(columns[0], 255)
    columns += [blank] * (-len(columns) % WIDE)
    rows = [np.concatenate(columns[i : i + WIDE], axis=1) for i in range(0, len(columns), WIDE)]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, "WEBP", quality=88, method=6)
    return buffer.getvalue()


def beside(picture: Pixels, nearest: Pixels) -> Pixels:
    """Return a picture with a small one at its right, on white."""
    found = Image.new("RGB", (picture.shape[1] + SMALL + 8, picture.shape[0]), "white")
    found.paste(Image.fromarray(picture), (0, 0))
    found.paste(Image.fromarray(nearest).resize((SMALL, SMALL), Image.Resampling.LANCZOS), (picture.shape[1], SMALL // 2))
    return np.asarray(found)


def nearest_of(pictures: Sequence[Pixels], folder: Path) -> list[Pixels]:
    """Return for each picture the one of a data set that is most like it, to the evaluator."""
    court = judge.load()
    files = [json.loads(line)["file_name"] for line in (folder / "metadata.jsonl").read_text().splitlines()]
    every = [np.asarray(Image.open(folder / file).convert("RGB")) for file in files]
    known = court.embed([judge.whole(keying.key(picture)) for picture in every])
    made = court.embed([judge.whole(keying.key(picture)) for picture in pictures])
    return [every[i] for i in (made @ known.T).argmax(1).tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--nearest", type=Path)
    options = parser.parse_args()
    if options.nearest is not None and (options.data is None or not (options.data / "metadata.jsonl").is_file()):
        parser.error("--nearest needs --data, a folder that 'ddgen data build stickers' wrote")
    pictures = draw(Pipeline.load(options.model, dtype="float32"), PROMPTS.read_text().splitlines(), SEEDS)
    options.into.write_bytes(laid_out(pictures))
    if options.nearest is not None:
        found = nearest_of(pictures, options.data)
        options.nearest.write_bytes(laid_out([beside(*pair) for pair in zip(pictures, found, strict=True)]))


if __name__ == "__main__":
    main()
