"""Train the image tower that comes with ddgen (ddgen/models/sticker-image.safetensors).

    npm pack @iconify-json/{noto,noto-v1,twemoji,fluent-emoji-flat,fluent-emoji,emojione,fxemoji,streamline-emojis} emojibase-data
    python -m bench.tower PACKAGES --out RUN [--drawn N] [--passes N] [--seconds S] [--into FILE]

PACKAGES holds the tarballs. A run is continued where it stood; when it is done, the tower is written to FILE in float16 and
measured on the set that it was not shown (firefox): how often a picture's own name is the nearest of all names.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn import functional as F

from ddgen.app import augment, emoji, scoring, tower
from ddgen.app.concepts import concepts, with_article
from ddgen.app.stickers import resvg
from ddgen.weights.checkpoint import save_tensors

HELD = "firefox"


def measure(draws: tower.Draws, whole: emoji.Emoji, image: torch.nn.Module, encode: tower.Encode) -> dict[str, float]:
    """Return how often the nearest of all names is the right one, by set; `listed`: among the generator's things."""
    names = encode([with_article(names[0]) for names in draws.names])
    inside = torch.zeros(len(names), dtype=torch.bool)
    inside[torch.from_numpy(draws.chosen)] = True
    found = {}
    for style in whole.styles:
        part = whole.of([style])
        right = []
        with torch.inference_mode():
            for i in range(0, len(part.pixels), 128):
                x = augment.on_ground(augment.premultiplied(part.pixels[i : i + 128]), 255 + torch.zeros(1, 3).numpy())
                vectors = F.normalize(image(2 * x - 1), dim=-1)
                logits = vectors @ names.T
                concept = torch.from_numpy(part.concept[i : i + 128])
                among = logits.masked_fill(~inside, -9)
                rows = zip(logits.argmax(1) == concept, among.argmax(1) == concept, inside[concept], strict=True)
                right += [(bool(a), bool(b), bool(c)) for a, b, c in rows]
        found[style] = round(sum(a for a, _, _ in right) / len(right), 3)
        found[f"{style}, listed"] = round(sum(b for _, b, c in right if c) / max(1, sum(c for *_, c in right)), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--drawn", type=int, default=600, help="batches of 160 pictures")
    parser.add_argument("--passes", type=int, default=12, help="over them")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--into", type=Path, default=scoring.FILE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    whole = emoji.load(options.packages, options.out / "emoji.npz", resvg)
    draws = tower.Draws(whole.of([style for style in whole.styles if style != HELD]), list(concepts()))
    encode, begun = scoring.default_text(), time.process_time()
    losses: list[float] = []

    def told(step: int, loss: float) -> None:
        losses.append(loss)
        if step % 10 == 0:
            print(step, f"{sum(losses[-10:]) / len(losses[-10:]):.4f}", f"{time.process_time() - begun:.0f} s", flush=True)

    done = tower.train(
        draws, lambda texts: encode(texts).clone(), options.out,
        drawn=options.drawn, passes=options.passes, seconds=options.seconds, told=told,
    )  # fmt: skip
    if done is None:
        return
    state = {name: value.half() for name, value in done.state_dict().items()}
    pictures = options.drawn * (tower.CONCEPTS * tower.VARIANTS + 2 * tower.PAIRS + 4 * tower.COUNTED)
    facts = {"config": asdict(done.config), "text_sha256": scoring.text_digest(), "pictures": pictures, "passes": options.passes}
    size = save_tensors(options.into, state, {scoring.KEY: json.dumps(facts), "licence": "Apache-2.0"})
    print(f"{options.into}: {size / 1e6:.1f} MB")
    print(json.dumps(measure(draws, whole, scoring.embedded(options.into).image, encode)))


if __name__ == "__main__":
    main()
