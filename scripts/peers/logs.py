"""Alerts among log lines: contrastream beside an isolation forest.

The lines are BGL's or another system's whose first column is `-` where a line is normal. AUC-PR is
average precision over the lines. The forest (Liu et al. 2008), which sees the whole log before it
scores a line of it, gets its best of: counts of templates in tumbling and in sliding windows of
lines, where a line scores what its window does; the template of each line alone; and per-line
features, with the severity and without. Templates are those of loghub's hand-made table. Figures of
the forest are means over ten seeds.

    contrastream evaluate pipelines/logs.toml --format log --data FOLDER --out scores --set ...
    python logs.py BGL_2k.log BGL_2k.templates.csv scores/BGL_2k.csv

Needs numpy, pandas and scikit-learn.
"""

import argparse

import numpy as np
import pandas as pd
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score

SEVERITIES = {"INFO": 1, "WARNING": 3, "ERROR": 4, "SEVERE": 5, "FATAL": 6, "FAILURE": 6}
SEVERITY_COLUMN = 8
WINDOWS = [10, 20, 50, 100]
SEEDS = range(10)


def forest(features):
    """How isolated each row is, by seed: higher is stranger. `[seeds, rows]`"""
    forests = [IsolationForest(n_estimators=100, random_state=seed).fit(features) for seed in SEEDS]
    return np.array([-forest.score_samples(features) for forest in forests])


def peers(lines, templates):
    """Scores of each line, by the name of what the forest was given."""
    numbers, _ = pd.factorize(templates)
    one_hot = np.eye(numbers.max() + 1)[numbers]
    severity = lines.str.split().str[SEVERITY_COLUMN].map(SEVERITIES).fillna(1).to_numpy()
    frequency = np.log(np.bincount(numbers)[numbers])
    words = lines.str.split().str.len()
    features = np.column_stack([frequency, lines.str.len(), words, lines.str.count(r"\d")])
    for window in WINDOWS:
        firsts = range(0, len(lines), window)
        counts = np.array([one_hot[first : first + window].sum(0) for first in firsts])
        yield f"counts in {window} lines", np.repeat(forest(counts), window, axis=1)[:, : len(lines)]
        sums = np.vstack([np.zeros(one_hot.shape[1]), one_hot.cumsum(0)])
        ends = np.arange(1, len(lines) + 1)
        sliding = sums[ends] - sums[np.maximum(ends - window, 0)]
        yield f"counts in the last {window} lines", forest(sliding)
    yield "template", forest(one_hot)
    yield "template and severity", forest(np.column_stack([one_hot, severity]))
    yield "line features", forest(features)
    yield "line features and severity", forest(np.column_stack([features, severity]))
    yield "frequency and severity", forest(np.column_stack([frequency, severity]))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("log")
    arguments.add_argument("templates", help="CSV with EventId, a row a line")
    arguments.add_argument("scores", nargs="*", help="CSV files that contrastream evaluate wrote")
    asked = arguments.parse_args()
    with open(asked.log, errors="replace") as file:
        lines = pd.Series([line.rstrip("\n") for line in file])
    alerts = (lines.str.split(n=1).str[0] != "-").to_numpy()
    half = len(lines) // 2

    def tell(name, by_seed):
        parts = (slice(None), slice(half), slice(half, None))
        of = [np.mean([average_precision_score(alerts[part], scores[part]) for scores in by_seed])
              for part in parts]
        print(f"{name}: {of[0]:.3f} (first half {of[1]:.3f}, second {of[2]:.3f})", flush=True)
        return of[0]

    print(f"{len(lines)} lines, {alerts.sum()} alerts: chance {alerts.mean():.3f}")
    for path in asked.scores:
        tell(f"contrastream {path}", [pd.read_csv(path)["anomaly_score"].to_numpy()])
    templates = pd.read_csv(asked.templates)["EventId"]
    best = max((tell(f"  forest, {name}", scores), name) for name, scores in peers(lines, templates))
    print(f"isolation forest: {best[0]:.3f} ({best[1]})")


if __name__ == "__main__":
    main()
