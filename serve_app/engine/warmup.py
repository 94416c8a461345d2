"""What a replica does before the first client: everything that is slow only once.

Data flow: sizes -> throw-away samples -> each batch size that compiled code tells apart, and a
decode; then the CUDA graphs. Runs on the device thread, between steps. What it takes is no step
time: nothing is learnt from it, which is why it goes before `measure.py`.
"""

from collections.abc import Callable, Mapping, Sequence

from serve_app.engine import memory
from serve_app.engine.board import Board
from serve_app.engine.optimize import Compiled
from serve_app.engine.sampler import Sample, Sampler
from serve_app.engine.schedule import Shape
from serve_app.engine.text import PromptVectors


def fits(board: Board, samples: Sequence[Sample], call: Callable[[Sequence[Sample]], None]) -> bool:
    """Try a step batch; False when memory did not suffice, which the scheduler gets to know."""
    try:
        call(samples)
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
    else:
        return True
    memory.release()
    with board.changed:
        board.planner.budget.forbid((samples[0].height, samples[0].width), len(samples))
    return False


def compile_ahead(
    compiled: Compiled,
    board: Board,
    sampler: Sampler,
    decode: Callable[[Sample], None],
    vectors: PromptVectors,
    shapes: Sequence[Shape],
) -> None:
    """Make the compiled code that serving these (height, width)s needs."""
    for height, width in shapes:
        samples_max = board.planner.budget.most((height, width))
        for samples in compiled.batches(samples_max):
            if not fits(board, _batch(sampler, vectors, (height, width), samples), sampler.step):
                break
        decode(sampler.start(vectors, width, height, 1, 0.0, 0))


def capture_ahead(
    board: Board, sampler: Sampler, vectors: PromptVectors, samples_by_shape: Mapping[Shape, int]
) -> None:
    """Record the graphs of these shapes, largest batch first: smaller ones find its memory."""
    for shape, most in samples_by_shape.items():
        for samples in range(min(most, board.planner.budget.most(shape)), 0, -1):
            fits(board, _batch(sampler, vectors, shape, samples), sampler.capture)


def _batch(sampler: Sampler, vectors: PromptVectors, shape: Shape, samples: int) -> list[Sample]:
    height, width = shape
    return [sampler.start(vectors, width, height, 1, 0.0, seed) for seed in range(samples)]
