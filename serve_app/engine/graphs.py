"""CUDA graphs: a step's thousand kernel launches recorded once, then started by a single call.

Data flow: warm-up -> `capture` of one transformer call per (height, width, samples), on buffers
that stay where they are -> serving: `replay` copies the inputs there, starts the graph, and copies
the outcome out before the next replay overwrites it. What was not captured is counted and run as
ever. Device thread only. Must not know about samples, jobs or the pipeline.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from serve_app.engine.schedule import Shape

WARM_CALLS = 3  # before a capture: libraries set themselves up in the first, kernels are chosen

Inputs = dict[str, torch.Tensor | None]
"""Arguments of the transformer, by name."""


class Graph(Protocol):
    """A recording; what it reads and writes stays where it was."""

    def replay(self) -> None:
        """Do again what was recorded."""
        ...


Recorder = Callable[[Callable[[], torch.Tensor]], tuple[Graph, torch.Tensor]]
"""Records a call; returns the graph and the tensor that each replay writes."""


class CudaRecorder:
    """Records on a CUDA device; all graphs share one pool of memory.

    They may, because they are replayed one after another and nothing of a replay is read after
    the next one has begun.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Callable[[], torch.Tensor]) -> tuple[Graph, torch.Tensor]:
        here = torch.cuda.current_stream(self._device)
        aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_CALLS):
                call()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on allocating; only what this one does must be fit for a graph.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = call()
        return graph, output


@dataclass(frozen=True, eq=False)
class _Captured:
    graph: Graph
    inputs: Inputs
    output: torch.Tensor


class StepGraphs:
    """Recorded transformer calls, by (height, width) and samples."""

    def __init__(self, call: Callable[[Inputs], torch.Tensor], recorder: Recorder) -> None:
        self._call = call
        self._recorder = recorder
        self._captured: dict[tuple[Shape, int], _Captured] = {}
        self.replays = 0
        """Calls that a graph did, since the warm-up."""
        self.misses = 0
        """Calls that had none, since the warm-up."""

    def capture(self, shape: Shape, inputs: Inputs) -> None:
        """Record the call with inputs of these shapes."""
        held: Inputs = {
            name: None if tensor is None else tensor.clone() for name, tensor in inputs.items()
        }
        graph, output = self._recorder(lambda: self._call(held))
        self._captured[shape, _samples(inputs)] = _Captured(graph, held, output)

    def freeze(self) -> None:
        """The warm-up is over: from here on it counts what had no graph."""
        self.replays = self.misses = 0

    def replay(self, shape: Shape, inputs: Inputs) -> torch.Tensor | None:
        """The outcome of the call, a tensor of its own; None where nothing was captured."""
        found = self._captured.get((shape, _samples(inputs)))
        if found is None:
            self.misses += 1
            return None
        for name, held in found.inputs.items():
            given = inputs[name]
            if held is not None and given is not None:
                held.copy_(given)
        found.graph.replay()
        self.replays += 1
        return found.output.clone()


def _samples(inputs: Inputs) -> int:
    latents = inputs["hidden_states"]
    if latents is None:
        raise ValueError("a transformer call needs hidden_states")
    return int(latents.shape[0])
