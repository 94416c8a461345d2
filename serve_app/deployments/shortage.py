"""What a model that does not start is waiting for: the cluster has too little of it.

Data flow: a replica that is on no node yet, what it asks for, Ray's nodes -> `shortage`, a pure
function -> a sentence for `/ready` and the log. It never says that a model cannot start: a node may
be on its way. Must not import Ray.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BUSY_PATIENCE_S = 30.0
"""How long a replica may be starting where nothing is left: until it runs, that is its own part."""
BYTES_PER_GIB = 1024**3
_TYPE = "accelerator_type:"
"""Prefix of the resource that marks nodes with a kind of GPU."""

Amounts = Mapping[str, float]


@dataclass(frozen=True)
class Node:
    """A live node's resources by name, as Ray counts them."""

    total: Amounts
    free: Amounts


def shortage(model_id: str, asks: Amounts, waited_s: float, nodes: Sequence[Node]) -> str | None:
    """Why no node takes a replica; None when it may just be starting.

    Args:
        model_id: whose replica it is.
        asks: resources of the replica, by Ray's names.
        waited_s: since Serve asked for it.
        nodes: those that are alive.
    """
    mark = next((name for name in asks if name.startswith(_TYPE) and asks.get("GPU")), None)
    wanted = _in_words({**asks, **({mark: 1.0} if mark else {})}, mark)
    if not wanted:
        return None
    totals = [_in_words(node.total, mark) for node in nodes]
    lacking = {}
    for name, amount in wanted.items():
        most = max((total.get(name, 0.0) for total in totals), default=0.0)
        if most < amount:
            lacking[name] = most
    if lacking:
        waits = _listed({name: wanted[name] for name in lacking})
        has = _listed(lacking) if len(lacking) > 1 else f"{next(iter(lacking.values())):g}"
        who = "no node has more than" if any(lacking.values()) else "the cluster has"
        return f"Model {model_id} waits for {waits}; {who} {has}."
    waits = _listed(wanted)
    if not any(_fits(wanted, total) for total in totals):
        return f"Model {model_id} waits for one node with {waits}; each node lacks a part."
    free = [_in_words(node.free, mark, node.total) for node in nodes]
    if waited_s > BUSY_PATIENCE_S and not any(_fits(wanted, one) for one in free):
        return f"Model {model_id} waits for {waits}; the nodes that have it are in use."
    return None


def _in_words(amounts: Amounts, mark: str | None, total: Amounts | None = None) -> Amounts:
    """Names that people read; only GPUs of the asked kind count where `mark` asks for one."""
    words = {name: amount for name, amount in amounts.items() if amount > 0}
    if "memory" in words:
        words["GiB of memory"] = round(words.pop("memory") / BYTES_PER_GIB, 1)
    if mark is not None:
        gpus = words.pop("GPU", 0.0)
        words.pop(mark, None)
        of_kind = mark in (amounts if total is None else total)
        words[f"GPU of type {mark.removeprefix(_TYPE)}"] = gpus if of_kind else 0.0
    return words


def _fits(asks: Amounts, held: Amounts) -> bool:
    return all(held.get(name, 0.0) >= amount for name, amount in asks.items())


def _listed(amounts: Amounts) -> str:
    names = sorted(amounts, key=lambda name: (not name.startswith(("CPU", "GPU")), name))
    words = [f"{amounts[name]:g} {name}" for name in names]
    return words[0] if len(words) == 1 else " and ".join((", ".join(words[:-1]), words[-1]))
