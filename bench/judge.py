"""Does the model draw what it was asked for? Each picture is judged by the nearest picture of the data set.

    python bench/judge.py [MODEL ...] [--data DIR] [--seeds 0,1,2,3] [--dtype bfloat16] [--sheet FILE]

DIR is what `ddgen data build stickers` wrote. The judge knows nothing of the generator: it compares blurred
colours and the directions of edges (16 x 16 cells) with every picture of DIR and takes the concept of the
nearest. Prompts: prompts/eval/concepts.jsonl, one per concept. First it judges itself: each picture
of one style by the pictures of the others. --sheet writes prompts/eval/sheet.txt, seeds 0-3, unpicked, as
WebP. --compositions N draws as many things in other colours and on backgrounds, half of them trained and half
held out, and takes the nearest of all things in all colours: thing and colour must both be right.
"""

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CELLS = 16
ANGLES = 6
PROMPTS = Path(__file__).resolve().parents[1] / "prompts" / "eval" / "concepts.jsonl"
SHEET = PROMPTS.with_name("sheet.txt")


def features(pixels: np.ndarray) -> np.ndarray:
    """Return what the judge sees of a picture (H, W, 3) uint8: a unit vector of colours and edges, tolerant
    of small shifts."""
    image = (
        np.asarray(Image.fromarray(pixels).resize((4 * CELLS, 4 * CELLS), Image.Resampling.BOX)).astype(
            np.float32
        )
        / 255
    )
    colours = image.reshape(CELLS, 4, CELLS, 4, 3).mean((1, 3))
    grey = image.mean(-1)
    dy, dx = np.gradient(grey)
    strength, angle = np.hypot(dx, dy), np.arctan2(dy, dx) % np.pi
    edges = np.zeros((CELLS, CELLS, ANGLES), np.float32)
    bins = (angle / np.pi * ANGLES).astype(int) % ANGLES
    for i in range(ANGLES):
        edges[..., i] = (strength * (bins == i)).reshape(CELLS, 4, CELLS, 4).mean((1, 3))
    padded = np.pad(edges, ((1, 1), (1, 1), (0, 0)))
    edges = sum(padded[i : i + CELLS, j : j + CELLS] for i in range(3) for j in range(3)) / 9
    parts = [1 - colours, edges]
    return np.concatenate([part.ravel() / (np.linalg.norm(part) + 1e-6) for part in parts])


def nearest(found: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return for each row of `found` the row of `known` that is nearest."""
    return (found @ known.T).argmax(1)


def read_data(folder: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Return the features, concepts and styles of the plain pictures of a data set: own colours, on white."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "colour" not in row and "background" not in row]
    known = np.stack(
        [features(np.asarray(Image.open(folder / row["file_name"]).convert("RGB"))) for row in rows]
    )
    return known, [row["icon"] for row in rows], [row["style"] for row in rows]


def judge(pictures: Sequence[np.ndarray], known: np.ndarray, concepts: Sequence[str]) -> list[str]:
    """Return the concept that each picture shows."""
    return [concepts[i] for i in nearest(np.stack([features(picture) for picture in pictures]), known)]


def judge_itself(known: np.ndarray, concepts: Sequence[str], styles: Sequence[str]) -> float:
    """Return how often the judge is right about real pictures of a style it was not shown."""
    right = []
    for style in sorted(set(styles)):
        held = np.array([item == style for item in styles])
        found = nearest(known[held], known[~held])
        names = np.array(concepts)
        right += list(names[~held][found] == names[held])
    return float(np.mean(right))


def read_cut(folder: Path) -> dict[str, list[np.ndarray]]:
    """Return the pictures of each concept cut out of the key colour, (H, W, 4)."""
    from ddgen.app.concepts import BACKGROUNDS, KEY
    from ddgen.io.matte import key_out

    found: dict[str, list[np.ndarray]] = {}
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row.get("background") == KEY:
            pixels = np.asarray(Image.open(folder / row["file_name"]).convert("RGB"))
            found.setdefault(row["icon"], []).append(key_out(pixels, BACKGROUNDS[KEY]))
    return found


def judge_compositions(draw, cut: dict[str, list[np.ndarray]], count: int) -> dict[str, tuple[int, int]]:
    """Return (right, asked) for things in other colours and on backgrounds, trained and held out.

    draw: prompts to pictures, one seed each. cut: from read_cut.
    """
    from ddgen.app.concepts import BACKGROUNDS, COLOURS, concepts, held_out, with_article
    from ddgen.app.stickers import dominant_hue, laid_on, recolour

    listed = [concept for concept in concepts() if concept.icon in cut]
    dyed = [
        (concept.icon, colour, [laid_on(recolour(raw, colour, dominant_hue(raw))) for raw in cut[concept.icon]])
        for concept in listed
        if concept.recolour
        for colour in COLOURS
    ]
    grounds = [
        (concept.icon, name, [laid_on(raw, rgb) for raw in cut[concept.icon]])
        for concept in listed
        for name, rgb in BACKGROUNDS.items()
    ]
    by_icon = {concept.icon: concept for concept in listed}
    results = {}
    for kind, known in (("thing", dyed), ("background", grounds)):
        table = np.stack([features(picture) for _, _, pictures in known for picture in pictures])
        labels = [(icon, colour) for icon, colour, pictures in known for _ in pictures]
        for held in (False, True):
            pairs = [(icon, colour) for icon, colour, _ in known if held_out(icon, colour, kind) == held]
            order = np.random.default_rng(0).permutation(len(pairs))[: count // 2]
            asked = [pairs[i] for i in order]
            prompts = [
                f"{by_icon[icon].phrase} on a {colour} background"
                if kind == "background"
                else with_article(f"{colour} {by_icon[icon].plain_name}")
                for icon, colour in asked
            ]
            seen = nearest(np.stack([features(picture) for picture in draw(prompts)]), table)
            right = sum(labels[i] == wanted for i, wanted in zip(seen, asked, strict=True))
            results[f"{kind}, {'held out' if held else 'trained'}"] = (right, len(asked))
    return results


def grid(pictures: Sequence[np.ndarray], per_prompt: int) -> bytes:
    """Return pictures as one WebP: a column per prompt, a row per seed, eight prompts wide."""
    wide = 8
    blocks = [pictures[i : i + wide * per_prompt] for i in range(0, len(pictures), wide * per_prompt)]
    rows = [np.concatenate(block[seed::per_prompt], axis=1) for block in blocks for seed in range(per_prompt)]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, "WEBP", quality=90, method=6)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*")
    parser.add_argument("--data", type=Path, default=Path("data/stickers"))
    parser.add_argument("--seeds", default="0,1,2,3")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compositions", type=int, default=0)
    options = parser.parse_args()
    known, concepts, styles = read_data(options.data)
    print(f"the judge itself, on styles it was not shown: {judge_itself(known, concepts, styles):.3f}")
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    seeds = [int(seed) for seed in options.seeds.split(",")]
    from ddgen.app.pipeline import Pipeline
    from ddgen.app.sheet import draw

    for model in options.models:
        pipeline = Pipeline.load(model, dtype=options.dtype)
        if options.sheet is not None:
            prompts = SHEET.read_text().splitlines()
            options.sheet.write_bytes(grid(draw(pipeline, prompts, range(4)), 4))
        pictures = draw(pipeline, [row["prompt"] for row in rows], seeds)
        found = judge(pictures, known, concepts)
        wanted = [row["concept"] for row in rows for _ in seeds]
        wrong = [f"{want} -> {got}" for want, got in zip(wanted, found, strict=True) if want != got]
        print(
            f"{model}: {1 - len(wrong) / len(wanted):.3f} of {len(wanted)} pictures show what was asked for"
        )
        print("  wrong: " + ", ".join(wrong))
        if options.compositions:
            found = judge_compositions(
                lambda prompts: draw(pipeline, prompts, [0]),  # noqa: B023
                read_cut(options.data),
                options.compositions,
            )
            for name, (right, asked) in found.items():
                print(f"  {name}: {right} of {asked}")


if __name__ == "__main__":
    main()
