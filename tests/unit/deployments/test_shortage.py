"""What a model waits for, said in one sentence that names the resource."""

import pytest

from serve_app.deployments.shortage import BUSY_PATIENCE_S, Amounts, Node, shortage

GPU = {"CPU": 4.0, "GPU": 1.0}
H100 = {**GPU, "accelerator_type:H100": 0.001}
LONG_S = BUSY_PATIENCE_S + 1


def node(free: Amounts | None = None, **total: float) -> Node:
    named = {name.replace("type_", "accelerator_type:"): value for name, value in total.items()}
    return Node(named, named if free is None else free)


CPU_NODE = node(CPU=16)
GPU_NODE = node(CPU=16, GPU=2, type_L4=1)


def said(asks: Amounts, *nodes: Node, waited_s: float = 0) -> str | None:
    return shortage("flux", asks, waited_s, nodes)


@pytest.mark.parametrize(
    ("asks", "nodes", "sentence"),
    [
        (GPU, [CPU_NODE], "Model flux waits for 1 GPU; the cluster has 0."),
        (GPU, [], "Model flux waits for 4 CPU and 1 GPU; the cluster has 0 CPU and 0 GPU."),
        ({"GPU": 4}, [GPU_NODE] * 2, "Model flux waits for 4 GPU; no node has more than 2."),
        (H100, [CPU_NODE], "Model flux waits for 1 GPU of type H100; the cluster has 0."),
        (H100, [GPU_NODE], "Model flux waits for 1 GPU of type H100; the cluster has 0."),
        (
            {**GPU, "fast": 1},
            [GPU_NODE],
            "Model flux waits for 1 fast; the cluster has 0.",
        ),
        (
            {"memory": 64 * 1024**3},
            [node(memory=32 * 1024**3)],
            "Model flux waits for 64 GiB of memory; no node has more than 32.",
        ),
        (
            {**GPU, "fast": 1},
            [GPU_NODE, node(CPU=4, fast=1)],
            "Model flux waits for one node with 4 CPU, 1 GPU and 1 fast; each node lacks a part.",
        ),
        (
            H100,
            [GPU_NODE, node(CPU=2, GPU=1, type_H100=1)],
            "Model flux waits for one node with 4 CPU and 1 GPU of type H100; "
            "each node lacks a part.",
        ),
    ],
)
def test_what_no_node_has_is_named_at_once(asks: Amounts, nodes: list[Node], sentence: str) -> None:
    assert said(asks, *nodes) == sentence


def test_what_others_hold_is_named_once_it_takes_longer_than_a_start() -> None:
    taken = node({"CPU": 12.0}, CPU=16, GPU=2, type_H100=1)
    assert said(H100, taken) is None
    assert said(H100, taken, waited_s=LONG_S) == (
        "Model flux waits for 4 CPU and 1 GPU of type H100; the nodes that have it are in use."
    )


@pytest.mark.parametrize("asks", [GPU, {"CPU": 1.0, "GPU": 0.0, "fast": 0.0}, {}])
def test_where_there_is_room_nothing_is_missing_however_long_it_takes(asks: Amounts) -> None:
    assert said(asks, CPU_NODE, GPU_NODE, waited_s=LONG_S) is None


def test_a_kind_of_gpu_is_found_where_ray_shows_it_among_free_resources_or_not() -> None:
    """Ray leaves out of what is free what is used up: a mark is 1, of which each takes 0.001."""
    held = node({"CPU": 16.0, "GPU": 1.0}, CPU=16, GPU=2, type_H100=1)
    assert said(H100, held, waited_s=LONG_S) is None
