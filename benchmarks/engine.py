"""How fast the engine is: `python -m benchmarks.engine --device cpu|cuda [--quick]`.

Data flow: `FluxPipeline` one by one and our engine, in turn in one run (`engine_sides.py`) ->
medians per size, an ablation of the speed switches, cold start -> table and JSON. On a CPU the
embedded model at concurrency 8 (`engine_cpu.py`); on CUDA FLUX.1 at its true size with random
weights, against the targets (`engine_cuda.py`). What a device cannot do is printed as not run.
Must not import Ray.
"""

import argparse

from benchmarks import _report


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and cases")
    parser.add_argument("--threads", type=int, default=0, help="of torch on a CPU; 0: all cores")
    parser.add_argument(
        "--compiled", action="store_true", help="on a CPU, too, measure FluxPipeline compiled"
    )
    parser.add_argument(
        "--part",
        default="all",
        choices=("all", "targets", "ablation"),
        help="on a GPU: a half, for machines lent for minutes; written to a file of its own",
    )
    options = parser.parse_args()
    if options.device.startswith("cuda"):
        from benchmarks import engine_cuda

        rows, summary, notes = engine_cuda.run(options.device, options.part, quick=options.quick)
    else:
        from benchmarks import engine_cpu

        rows, summary, notes = engine_cpu.run(
            quick=options.quick, threads=options.threads, compiled=options.compiled
        )
    packages = ("torch", "diffusers", "transformers", "torchao", "numpy")
    name = "engine" if options.part == "all" else f"engine-{options.part}"
    _report.finish(name, rows, summary, device=options.device, packages=packages, notes=notes)


if __name__ == "__main__":
    main()
