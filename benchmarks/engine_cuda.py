"""The engine on a GPU, with FLUX.1 at its true size: part of `benchmarks/engine.py`.

Data flow: `random:` weights (right cost, noise for pictures) -> per model and precision: baseline
eager and ours in turn, baseline compiled, an ablation of the switches -> rows held against the
targets, summary, notes. A case that this GPU or its packages cannot do becomes a note "not run".
"""

import gc
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks._report import Row
from benchmarks.engine_sides import Baseline, Ours, Taken, Work, in_turn, peak_flops
from serve_app.config import EngineConfig, OptimizeConfig, Precision
from serve_app.engine.memory import GIB
from serve_app.errors import ConfigError

ROUNDS, ROUNDS_QUICK = 5, 2
MATMUL_EDGE = 8192
WEIGHTS_GIB = 32  # of one FLUX.1 in bf16
FULL = OptimizeConfig(
    attention="best",
    fuse_qkv=True,
    channels_last_vae=True,
    compile_transformer="dynamic",
    compile_vae=True,
)
# In the order of adding; the last but one is what a GPU configuration should use.
ABLATION: dict[str, OptimizeConfig] = {
    "all off": OptimizeConfig(channels_last_vae=False),
    "+ channels_last_vae": OptimizeConfig(),
    "+ attention cudnn": OptimizeConfig(attention="cudnn"),
    "+ attention best": OptimizeConfig(attention="best"),
    "+ compile_transformer": OptimizeConfig(attention="best", compile_transformer="dynamic"),
    "+ compile_vae": OptimizeConfig(
        attention="best", compile_transformer="dynamic", compile_vae=True
    ),
    "+ fuse_qkv (all)": FULL,
    "all, static": FULL.model_copy(update={"compile_transformer": "static"}),
}


@dataclass(frozen=True)
class Target:
    """What the project wants of one H200."""

    model: str
    precision: Precision
    work: Work
    seconds: float | None = None
    """Per image, prompt to PNG, at most."""
    ratio: float | None = None
    """Over eager FluxPipeline one by one, at least."""


def _schnell(px: int, images: int = 1) -> Work:
    return Work(px, 4, images)


DEV_1024 = Work(1024, 28, guidance=3.5)
TARGETS = (
    Target("random:schnell", "bf16", _schnell(1024), seconds=0.50, ratio=1.8),
    Target("random:schnell", "bf16", _schnell(512), seconds=0.16),
    Target("random:schnell", "bf16", _schnell(256, 16), ratio=1.7),
    Target("random:schnell", "fp8", _schnell(1024), seconds=0.36),
    Target("random:dev", "bf16", DEV_1024, seconds=3.3),
    Target("random:dev", "fp8", DEV_1024, seconds=2.3),
)
# Where launching might limit, and where an image is decoded while others step.
SMALL = (_schnell(256), _schnell(256, 16))
CROWD = (*SMALL, _schnell(1024, 8))
GRAPHS = FULL.model_copy(update={"cuda_graphs": ("256x256",)})
OVERLAP = FULL.model_copy(update={"overlap_decode": True})
BOTH = GRAPHS.model_copy(update={"overlap_decode": True})
PAIRED: tuple[tuple[str, OptimizeConfig, tuple[Work, ...]], ...] = (
    ("all + cuda_graphs", GRAPHS, SMALL),
    ("all + overlap_decode", OVERLAP, CROWD),
    ("all + both", BOTH, SMALL),
    (
        "attention best + cuda_graphs, nothing compiled",
        OptimizeConfig(attention="best", cuda_graphs=("256x256",)),
        SMALL,
    ),
)
COLD_START_MAX_S = 60.0

Result = tuple[list[Row], dict[str, float], list[str]]


def run(device: str, part: str, *, quick: bool) -> Result:
    """Measure what this GPU can do of `part`; `quick` leaves out dev and the ablation."""
    rounds = ROUNDS_QUICK if quick else ROUNDS
    rows: list[Row] = []
    summary: dict[str, float] = {}
    notes = [
        f"random weights: right cost, noise for pictures; medians of {rounds} rounds, eager and "
        "ours in turn; seconds per image, prompt to PNG; ratio: eager / ours"
    ]
    if part in ("all", "targets"):
        _targets(device, rounds, quick, rows, summary, notes)
    if part in ("all", "ablation"):
        _ablations(device, rounds, quick, rows, notes)
    for key in ("throughput_ratio", "worst_ratio", "latency_s", "latency_ratio", "roofline_ratio"):
        summary.setdefault(key, 0.0)
    notes.append("0 in the last line: not run")
    return rows, summary, notes


def _targets(
    device: str,
    rounds: int,
    quick: bool,
    rows: list[Row],
    summary: dict[str, float],
    notes: list[str],
) -> None:
    groups = dict.fromkeys((target.model, target.precision) for target in TARGETS)
    for model, precision in groups:
        if quick and model == "random:dev":
            notes.append(f"{model} {precision}: not run (--quick)")
            continue
        with _or_note(notes, f"{model} {precision}"):
            targets = [one for one in TARGETS if (one.model, one.precision) == (model, precision)]
            rows += _group(device, targets, rounds, summary, notes)
    with _or_note(notes, "FluxPipeline compiled"):
        rows.append(_compiled(device, rounds))


def _ablations(device: str, rounds: int, quick: bool, rows: list[Row], notes: list[str]) -> None:
    if quick:
        notes.append("ablation: not run (--quick)")
        return
    for name, switches in ABLATION.items():
        with _or_note(notes, f"ablation {name}"):
            rows.append(_ablation(device, name, switches, rounds))
    for name, switches, works in PAIRED:
        with _or_note(notes, f"ablation {name}"):
            rows += _paired(device, name, switches, works, rounds, notes)


def _group(
    device: str, targets: list[Target], rounds: int, summary: dict[str, float], notes: list[str]
) -> list[Row]:
    """All targets of one model in one precision: eager bf16 against ours."""
    model, precision = targets[0].model, targets[0].precision
    if precision == "fp8" and importlib.util.find_spec("torchao") is None:
        raise ConfigError("torchao is not installed")  # said before minutes of loading
    _need_memory(device, 2 * WEIGHTS_GIB + 8)
    config = EngineConfig(
        device=device,
        precision=precision,
        optimize=FULL,
        step_batch_max_samples=8,
        budget_measure_s=10.0,
    )
    with Ours(model, config, None) as ours:
        text_tokens = ours.engine.info.text_tokens_max
        ours.warm_up(sorted({one.work.px for one in targets}))
        eager = Baseline(model, config.model_copy(update={"precision": "bf16"}), text_tokens)
        rows = []
        for one in targets:
            ways = {"eager": partial(eager.draw, one.work), "ours": partial(ours.draw, one.work)}
            rows.append(_row(one, in_turn(ways, rounds)))
        if (model, precision) == ("random:schnell", "bf16"):
            _summarise(device, eager, rows, targets, summary)
        stats = ours.engine.stats()
    notes.append(
        f"{model} {precision}: weights in memory after {ours.load_s:.1f} s, then warm-up with "
        f"compilation {ours.warm_up_s:.1f} s (target {COLD_START_MAX_S:.0f} s); recompiles after "
        f"it {stats.recompiles}; peak {stats.memory_peak_bytes / GIB:.1f} GiB with the baseline"
    )
    return rows


def _summarise(
    device: str, eager: Baseline, rows: list[Row], targets: list[Target], summary: dict[str, float]
) -> None:
    single, crowd = rows[0], rows[-1]
    floor_s = eager.flops(targets[0].work) / peak_flops(device, torch.bfloat16, MATMUL_EDGE)
    summary["throughput_ratio"] = float(crowd["ratio"] or 0)
    summary["worst_ratio"] = min(float(row["ratio"] or 0) for row in rows)
    summary["latency_s"] = float(single["ours s/image"] or 0)
    summary["latency_ratio"] = float(single["ratio"] or 0)
    summary["roofline_ratio"] = floor_s / summary["latency_s"]


def _compiled(device: str, rounds: int) -> Row:
    """What diffusers itself reaches with its own advice."""
    _need_memory(device, 2 * WEIGHTS_GIB + 8)
    target = Target("random:schnell", "bf16", _schnell(1024))
    config = EngineConfig(device=device, precision="bf16")
    eager, compiled = (Baseline(target.model, config, 256) for _ in range(2))
    compiled.compile()
    ways: dict[str, Callable[[], None]] = {
        "eager": partial(eager.draw, target.work),
        "ours": partial(compiled.draw, target.work),
    }
    return _row(target, in_turn(ways, rounds), "FluxPipeline compiled")


def _ablation(device: str, name: str, switches: OptimizeConfig, rounds: int) -> Row:
    """One set of switches, one image at a time; eager stays empty: compare with 'all off'."""
    _need_memory(device, WEIGHTS_GIB + 8)
    target = Target("random:schnell", "bf16", _schnell(1024))
    config = EngineConfig(device=device, precision="bf16", optimize=switches)
    with Ours(target.model, config, 256) as ours:
        ours.warm_up([target.work.px])
        taken = in_turn({"ours": partial(ours.draw, target.work)}, rounds)
    return _row(target, taken, name)


def _paired(
    device: str,
    name: str,
    switches: OptimizeConfig,
    works: tuple[Work, ...],
    rounds: int,
    notes: list[str],
) -> list[Row]:
    """Ours with the switches against ours without these two, in turn; `eager` is the latter."""
    _need_memory(device, 2 * WEIGHTS_GIB + 16)
    plain = switches.model_copy(update={"cuda_graphs": (), "overlap_decode": False})
    config = EngineConfig(
        device=device, precision="bf16", optimize=switches, step_batch_max_samples=8
    )
    with (
        Ours("random:schnell", config, 256) as ours,
        Ours("random:schnell", config.model_copy(update={"optimize": plain}), 256) as other,
    ):
        rows = []
        sizes = sorted({work.px for work in works})
        ours.warm_up(sizes)
        other.warm_up(sizes)
        for work in works:
            ways = {"eager": partial(other.draw, work), "ours": partial(ours.draw, work)}
            target = Target("random:schnell", "bf16", work)
            rows.append(_row(target, in_turn(ways, rounds), f"{name} / ours without"))
        stats = ours.engine.stats()
    notes.append(
        f"{name}: graph replays {stats.graph_replays}, misses {stats.graph_misses}; decodes that "
        f"were not beside a step {stats.decodes_alone}; recompiles {stats.recompiles}"
    )
    return rows


def _row(target: Target, taken: dict[str, Taken], case: str = "target") -> Row:
    work, ours_s = target.work, taken["ours"].seconds / target.work.images
    eager_s = taken["eager"].seconds / work.images if "eager" in taken else None
    ratio = eager_s / ours_s if eager_s is not None else None
    wanted = []
    if target.seconds is not None:
        wanted.append(f"<= {target.seconds} s: {_met(ours_s <= target.seconds)}")
    if target.ratio is not None and ratio is not None:
        wanted.append(f">= {target.ratio}x: {_met(ratio >= target.ratio)}")
    return {
        "case": case,
        "model": target.model,
        "precision": target.precision,
        "px": work.px,
        "steps": work.steps,
        "in flight": work.images,
        "ours s/image": ours_s,
        "eager s/image": eager_s,
        "ratio": ratio,
        "target": ", ".join(wanted),
    }


def _met(yes: bool) -> str:
    return "met" if yes else "missed"


def _need_memory(device: str, gib: int) -> None:
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    if free < gib * GIB:
        raise ConfigError(f"needs {gib} GiB of GPU memory, {free / GIB:.0f} are free")


@contextmanager
def _or_note(notes: list[str], what: str) -> Iterator[None]:
    """Run a case; what cannot run leaves a note, and no memory behind."""
    try:
        yield
    except ConfigError as error:
        notes.append(f"{what}: not run ({error})")
    except Exception as error:  # noqa: BLE001 - the other cases are still worth their time
        notes.append(f"{what}: failed ({type(error).__name__}: {str(error)[:200]})")
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
