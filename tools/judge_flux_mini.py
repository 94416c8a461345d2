"""Judge flux-mini by pixels alone.

    python tools/judge_flux_mini.py ceiling    # the judge itself, on 500 drawn scenes
    python tools/judge_flux_mini.py model --sizes 256x256 --steps 4 --n 300
    python tools/judge_flux_mini.py prompt "a red circle on a blue background" --size 512x512

Each prints a table and, with --json FILE, adds its figures to FILE under a key naming the run.
`from tools.judge_flux_mini import describe` gives other tests the description of one picture.
"""

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from tools.flux_mini import captions  # noqa: E402
from tools.flux_mini.judge import Description, Thing, describe, verdict  # noqa: E402
from tools.flux_mini.world import Spec, draw, lay_out  # noqa: E402

__all__ = ["Description", "Thing", "describe", "judge_drawn", "judge_model", "verdict"]

MODEL = ROOT / "serve_app" / "models" / "flux-mini"
_KINDS = ("single", "single", "single", "count", "relation")
_CEILING_SIZES = (
    (256, 256),
    (512, 512),
    (1024, 1024),
    (256, 512),
    (512, 256),
    (768, 512),
    (384, 640),
)
_FIRST_SEED = 1_000_000  # far from anything training draws
Tally = dict[str, dict[str, float]]


def prompts(n: int, seed: str = "judge") -> list[tuple[Spec, str]]:
    """Fresh prompts in the training captions' language: three in five single objects, the rest
    counts, relations.
    """
    rng = random.Random(seed)
    specs = [captions.random_spec(rng, _KINDS[k % len(_KINDS)]) for k in range(n)]
    return [(spec, captions.caption(rng, spec)) for spec in specs]


def tally(judged: list[tuple[Spec, dict[str, bool]]]) -> Tally:
    """Shares right by kind of prompt; `all` holds every prompt. `n` is the number judged."""
    groups: dict[str, list[dict[str, bool]]] = defaultdict(list)
    for spec, result in judged:
        groups["all"].append(result)
        groups[spec.kind].append(result)
        if spec.kind == "single":
            shape, colour = spec.objects[0]
            held = captions.held_out(shape, colour, spec.background)
            groups["single, held-out combination" if held else "single, seen combination"].append(
                result
            )
            groups[f"shape {shape}"].append(result)
    table: Tally = {}
    for name, results in sorted(groups.items()):
        keys = dict.fromkeys(k for r in results for k in r)
        rows = {k: [r[k] for r in results if k in r] for k in keys}
        table[name] = {"n": len(results)} | {k: round(sum(v) / len(v), 4) for k, v in rows.items()}
    return table


def print_table(title: str, table: Tally) -> None:
    """Print shares in per cent."""
    columns = ("background", "colour", "shape", "count", "relation")
    print(f"\n{title}\n{'':32}{'n':>5}" + "".join(f"{c:>12}" for c in columns))
    for name, row in table.items():
        cells = "".join(f"{100 * row[c]:>12.1f}" if c in row else f"{'':>12}" for c in columns)
        print(f"{name:32}{row['n']:>5.0f}{cells}")


def judge_drawn(n: int) -> Tally:
    """The judge's own ceiling: scenes drawn by the world itself, judged like pictures."""
    rng = random.Random("ceiling")
    judged = []
    for k in range(n):
        spec = captions.random_spec(rng, _KINDS[k % len(_KINDS)])
        width, height = _CEILING_SIZES[k % len(_CEILING_SIZES)]
        scene = lay_out(spec, width, height, np.asarray([rng.random() for _ in range(3)]))
        judged.append((spec, verdict(spec, describe(draw(scene)))))
    return tally(judged)


def judge_model(
    pipe: Any, n: int, width: int, height: int, steps: int, seed: str = "judge"
) -> tuple[Tally, list[str]]:
    """Judge pictures of fresh prompts; also returns a line for every picture that is not wholly
    right.
    """
    judged, misses = [], []
    for k, (spec, text) in enumerate(prompts(n, seed)):
        found = describe(picture(pipe, text, width, height, steps, _FIRST_SEED + k))
        result = verdict(spec, found)
        judged.append((spec, result))
        if not all(result.values()):
            misses.append(f"{text!r} ({_FIRST_SEED + k}): {found}")
    return tally(judged), misses


def picture(pipe: Any, prompt: str, width: int, height: int, steps: int, seed: int) -> Any:
    """One picture by the stock pipeline."""
    return pipe(
        prompt,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=0.0,
        max_sequence_length=pipe.tokenizer_2.model_max_length,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]


def _record(path: Path | None, key: str, value: Any) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    known[key] = value
    path.write_text(json.dumps(known, indent=1) + "\n")


def _size(text: str) -> tuple[int, int]:
    width, height = text.lower().split("x")
    return int(width), int(height)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("ceiling", "model", "prompt"))
    parser.add_argument("prompt", nargs="?", default="a red circle on a blue background")
    parser.add_argument("--sizes", "--size", nargs="+", type=_size, default=[(256, 256)])
    parser.add_argument("--steps", nargs="+", type=int, default=[4])
    parser.add_argument("--n", type=int, default=None)
    parser.add_argument("--seed", default="judge", help="names the set of prompts")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument(
        "--misses", action="store_true", help="print every picture that is not wholly right"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.what == "ceiling":
        n = args.n or 500
        table = judge_drawn(n)
        print_table(f"judge on {n} drawn scenes", table)
        _record(args.json, "ceiling", table)
        return
    from tools.flux_mini.folder import load_folder

    pipe = load_folder(args.model)
    for width, height in args.sizes:
        for steps in args.steps:
            if args.what == "prompt":
                print(describe(picture(pipe, args.prompt, width, height, steps, _FIRST_SEED)))
                continue
            start = time.monotonic()
            table, misses = judge_model(pipe, args.n or 300, width, height, steps, args.seed)
            seconds = time.monotonic() - start
            print_table(f"{width}x{height}, {steps} steps, {seconds:.0f} s", table)
            if args.misses:
                print("\n".join(misses))
            _record(
                args.json,
                f"{width}x{height}/{steps}",
                {"table": table, "seconds": round(seconds, 1)},
            )


if __name__ == "__main__":
    main()
