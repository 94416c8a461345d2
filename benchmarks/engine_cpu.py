"""The engine on a CPU, with the embedded model: part of `benchmarks/engine.py`.

Data flow: sizes -> baseline and ours in turn -> rows, summary, notes.
"""

from functools import partial

import torch

from benchmarks._report import Row
from benchmarks.engine_sides import Baseline, Ours, Taken, Work, in_turn, peak_flops
from serve_app.config import EngineConfig, OptimizeConfig
from serve_app.engine.load import set_torch_threads

SOURCE = "embedded:flux-mini"
SIZES = (128, 256, 512)
STEPS = 4
CONCURRENCY = 8
LATENCY_PX = 512
ROUNDS, ROUNDS_QUICK = 7, 3
MATMUL_EDGE = 1024

SWITCHES: dict[str, dict[str, bool]] = {
    "all off": {"channels_last_vae": False},
    "channels_last_vae": {"channels_last_vae": True},
    "channels_last_vae, fuse_qkv": {"channels_last_vae": True, "fuse_qkv": True},
    "channels_last_vae, overlap_decode": {"channels_last_vae": True, "overlap_decode": True},
}

Result = tuple[list[Row], dict[str, float], list[str]]


def run(*, quick: bool, threads: int, compiled: bool) -> Result:
    """Measure; a compiled baseline only where asked for, for it takes minutes to compile."""
    rounds = ROUNDS_QUICK if quick else ROUNDS
    set_torch_threads(threads)
    config = EngineConfig(torch_threads=threads, step_batch_max_samples=CONCURRENCY)
    ours = Ours(SOURCE, config, None)
    text_tokens = ours.engine.info.text_tokens_max
    baseline = Baseline(SOURCE, config, text_tokens)
    ours.warm_up(SIZES)
    rows: list[Row] = [_throughput(baseline, ours, px, rounds) for px in SIZES]
    one = Work(LATENCY_PX, STEPS)
    ways = {"eager": partial(baseline.draw, one), "ours": partial(ours.draw, one)}
    single = in_turn(ways, rounds)
    floor_s = baseline.flops(one) / peak_flops("cpu", torch.float32, MATMUL_EDGE)
    ours.close()
    rows += _ablation(threads, text_tokens, rounds)
    ratios = [float(row["ratio"] or 0) for row in rows if row["case"] == "concurrency 8"]
    summary = {
        "throughput_ratio": ratios[0],
        "worst_ratio": min(ratios),
        "latency_s": single["ours"].seconds,
        "latency_ratio": single["eager"].seconds / single["ours"].seconds,
        "roofline_ratio": floor_s / single["ours"].seconds,
    }
    notes = [
        f"flux-mini, {STEPS} steps, torch threads {torch.get_num_threads()}, medians of {rounds} "
        "rounds, both sides in turn; seconds per image, prompt to PNG; ratio: eager / ours; cpu "
        "ratio: the same of processor time, which other programs disturb less",
        f"latency and roofline: one {LATENCY_PX}x{LATENCY_PX} image at a time; the roofline is the "
        f"rate of a {MATMUL_EDGE}-edge matrix product in the same run",
        f"cold start: load {ours.load_s:.1f} s, warm-up of {len(SIZES)} sizes "
        f"{ours.warm_up_s:.1f} s (imports not counted)",
    ]
    if compiled:
        rows.append(_compiled(config, text_tokens, rounds))
    else:
        notes.append("FluxPipeline compiled: not run (--compiled runs it)")
    notes.append("FLUX.1 at its true size: not run (needs --device cuda)")
    return rows, summary, notes


def _throughput(baseline: Baseline, ours: Ours, px: int, rounds: int) -> Row:
    work = Work(px, STEPS, CONCURRENCY)
    ways = {"eager": partial(baseline.draw, work), "ours": partial(ours.draw, work)}
    return _row(f"concurrency {CONCURRENCY}", "defaults", px, CONCURRENCY, in_turn(ways, rounds))


def _ablation(threads: int, text_tokens: int, rounds: int) -> list[Row]:
    """Every switch that works on a CPU, on one image at a time and on eight."""
    sides = {}
    for name, switches in SWITCHES.items():
        config = EngineConfig(
            torch_threads=threads,
            step_batch_max_samples=CONCURRENCY,
            optimize=OptimizeConfig(**switches),
        )
        sides[name] = Ours(SOURCE, config, text_tokens)
        sides[name].warm_up((128, LATENCY_PX))
    rows = []
    for px, images in ((LATENCY_PX, 1), (128, CONCURRENCY), (LATENCY_PX, CONCURRENCY)):
        work = Work(px, STEPS, images)
        ways = {name: partial(side.draw, work) for name, side in sides.items()}
        times = in_turn(ways, rounds)
        for name, taken in times.items():
            both = {"eager": times["all off"], "ours": taken}
            rows.append(_row("ablation", name, px, images, both))
    for side in sides.values():
        side.close()
    return rows


def _compiled(config: EngineConfig, text_tokens: int, rounds: int) -> Row:
    eager, compiled = (Baseline(SOURCE, config, text_tokens) for _ in range(2))
    compiled.compile()
    one = Work(LATENCY_PX, STEPS)
    ways = {"eager": partial(eager.draw, one), "ours": partial(compiled.draw, one)}
    return _row("FluxPipeline compiled", "(as ours)", LATENCY_PX, 1, in_turn(ways, rounds))


def _row(case: str, switches: str, px: int, images: int, taken: dict[str, Taken]) -> Row:
    eager, ours = taken["eager"], taken["ours"]
    return {
        "case": case,
        "switches": switches,
        "px": px,
        "in flight": images,
        "eager s/image": eager.seconds / images,
        "ours s/image": ours.seconds / images,
        "ratio": eager.seconds / ours.seconds,
        "cpu ratio": eager.cpu_seconds / ours.cpu_seconds,
    }
