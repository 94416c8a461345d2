"""A plot of `benchmarks.scheduling` as SVG, made of strings: no plotting library is a dependency.

Data flow: rows -> one panel per figure, lines over the load, log scale -> `results/scheduling.svg`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks._report import RESULTS, Row

WIDTH, HEIGHT, MARGIN = 360, 260, 48
COLOURS = {"static": "#8c8c8c", "fcfs": "#d08c2f", "srpt": "#3a76b0", "fair": "#2f8f4e"}
NAMES = {
    "static": "FCFS, static batches",
    "fcfs": "FCFS by step",
    "srpt": "SRPT",
    "fair": "SRPT + ageing + fair share",
}


def plot(rows: Sequence[Row], mix: str, path: Path = RESULTS / "scheduling.svg") -> Path:
    """Write mean latency and p99 slowdown over the load, for each policy."""
    shown = [row for row in rows if row["mix"] == mix and row["where"] == "simulated"]
    panels = ("mean s", "p99 slowdown")
    parts = [_panel(shown, key, index) for index, key in enumerate(panels)]
    legend = [
        f'<rect x="{MARGIN + 170 * n}" y="{HEIGHT + 28}" width="10" height="10" fill="{colour}"/>'
        f'<text x="{MARGIN + 170 * n + 15}" y="{HEIGHT + 37}">{NAMES[name]}</text>'
        for n, (name, colour) in enumerate(COLOURS.items())
    ]
    size = f'width="{2 * WIDTH + MARGIN}" height="{HEIGHT + 50}"'
    text = "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" '
            'font-size="11">',
            f'<rect {size} fill="white"/>',
            f'<text x="{MARGIN}" y="16" font-size="13">{mix}, simulated H100, by load</text>',
            *parts,
            *legend,
            "</svg>",
        ]
    )
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _panel(rows: Sequence[Row], key: str, index: int) -> str:
    values = [float(str(row[key])) for row in rows]
    low, high = math.log10(min(values) * 0.8), math.log10(max(values) * 1.25)
    loads = sorted({float(str(row["load"])) for row in rows})
    left = index * WIDTH + MARGIN

    def at(row: Mapping[str, object]) -> tuple[float, float]:
        across = (float(str(row["load"])) - loads[0]) / (loads[-1] - loads[0])
        up = (math.log10(float(str(row[key]))) - low) / (high - low)
        return left + 10 + across * (WIDTH - 80), HEIGHT - 8 - up * (HEIGHT - 60)

    parts = [f'<text x="{left}" y="36">{key} (log scale)</text>']
    for load in loads:
        x = left + 10 + (load - loads[0]) / (loads[-1] - loads[0]) * (WIDTH - 80)
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT + 10}" text-anchor="middle">{load}</text>')
    for name, colour in COLOURS.items():
        points = sorted((*at(row), float(str(row[key]))) for row in rows if row["policy"] == name)
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y, value = points[-1]
        parts.append(f'<text x="{x + 5:.0f}" y="{y + 4:.0f}" fill="{colour}">{value:.3g}</text>')
    return "\n".join(parts)
