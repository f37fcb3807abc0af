"""Fit the evaluator that comes with ddgen (ddgen/models/judge.safetensors), and ask it about real pictures.

    npm pack @iconify-json/{noto,noto-v1,twemoji,fluent-emoji-flat,fluent-emoji,emojione,fxemoji,streamline-emojis} emojibase-data
    python -m bench.evaluator PACKAGES [--kept FILE] [--into FILE]

It is fitted to five sets and asked about the three that the generator is trained on, none of which it was shown: how often it
names the right one of the generator's things.
"""

import argparse
import time
from pathlib import Path

import torch

from ddgen.app import emoji, judge, keying
from ddgen.app.concepts import STYLES, concepts
from ddgen.app.stickers import laid_on, resvg


def cut(raw: keying.Pixels) -> keying.Pixels:
    """Return an RGBA picture as the evaluator would find it on white."""
    return judge.whole(keying.key(laid_on(raw)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("--kept", type=Path, default=Path("data/emoji.npz"), help="the rendered pictures")
    parser.add_argument("--into", type=Path, default=judge.FILE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.process_time()
    rendered = emoji.load(options.packages, options.kept, resvg)
    size = judge.save(judge.fit(rendered, [concept.icon for concept in concepts()]), options.into)
    print(f"{options.into}: {size / 1e6:.1f} MB, {time.process_time() - begun:.0f} s")
    found, listed = judge.load(options.into), [concept.icon for concept in concepts()]
    total = right = 0
    for style in STYLES:
        part = rendered.of([style])
        wanted = [(raw, part.labels[i].icon) for raw, i in zip(part.pixels, part.concept, strict=True) if part.labels[i].icon in listed]
        named = found.name([cut(raw) for raw, _ in wanted], listed)
        good = sum(a == b for a, (_, b) in zip(named, wanted, strict=True))
        print(f"{style}: {good} of {len(wanted)}")
        total, right = total + len(wanted), right + good
    print(f"all: {right / total:.3f} of {total} real pictures among {len(listed)} things")


if __name__ == "__main__":
    main()
