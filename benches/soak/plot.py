"""Draws the samples of a soak as SVG: memory, lag and rate over time, one above the other.

    plot.py samples.csv soak.svg "title"
"""

import csv
import math
import sys
from html import escape

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP, BOTTOM = 900, 150, 90, 20, 50, 36, 40
PANELS = [
    ("rss_mib", "memory, MiB", "#2b6cb0"),
    ("lag_records", "lag, records not committed", "#b7791f"),
    ("records_per_second", "records a second", "#2f855a"),
]


def main():
    source, target, title = sys.argv[1:]
    with open(source, newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    with open(target, "w") as file:
        file.write(draw(rows, title))


def draw(rows, title):
    minutes = [row["seconds"] / 60 for row in rows]
    longest = max(minutes)
    height = TOP + len(PANELS) * (PANEL + GAP) - GAP + BOTTOM
    at = lambda minute: LEFT + (WIDTH - LEFT - RIGHT) * minute / longest
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
    ]
    for number, (column, label, colour) in enumerate(PANELS):
        top = TOP + number * (PANEL + GAP)
        values = [row[column] for row in rows]
        ticks = ticks_to(max(values))
        y = lambda value: top + PANEL * (1 - value / ticks[-1])
        out.append(f'<text x="{LEFT}" y="{top - 6}">{escape(label)}</text>')
        for tick in ticks:
            out.append(
                f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
                f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:,g}</text>'
            )
        points = " ".join(f"{at(m):.1f},{y(v):.1f}" for m, v in zip(minutes, values))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    for tick in ticks_to(longest):
        if tick <= longest:
            out.append(
                f'<text x="{at(tick):.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">'
                f"{tick:g}</text>"
            )
    out.append(f'<text x="{WIDTH - RIGHT}" y="{height - 6}" text-anchor="end">minutes</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"


def ticks_to(largest):
    """From 0 to at least `largest`, in steps of 1, 2 or 5 times a power of ten."""
    rough = max(largest, 1e-9) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * count for count in range(math.ceil(largest / step) + 1)]


if __name__ == "__main__":
    main()
