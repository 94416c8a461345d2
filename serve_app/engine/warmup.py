"""What a replica does before the first client: everything that is slow only once.

Data flow: sizes -> throw-away samples -> each batch size that compiled code tells apart, and a
decode. Runs on the device thread, between steps. What it takes is no step time: nothing is learnt
from it, which is why it goes before `measure.py`.
"""

from collections.abc import Sequence

from serve_app.engine.optimize import Compiled
from serve_app.engine.sampler import Sampler
from serve_app.engine.schedule import Shape
from serve_app.engine.text import PromptVectors


def compile_ahead(
    compiled: Compiled,
    sampler: Sampler,
    vectors: PromptVectors,
    shapes: Sequence[Shape],
    samples_max: int,
) -> None:
    """Make the compiled code that serving these (height, width)s needs."""
    for height, width in shapes:
        for samples in compiled.batches(samples_max):
            batch = [sampler.start(vectors, width, height, 1, 0.0, seed) for seed in range(samples)]
            sampler.step(batch)
        sampler.decode(sampler.start(vectors, width, height, 1, 0.0, 0))
