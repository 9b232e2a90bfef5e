"""Premature beats of an electrocardiogram: contrastream beside random cut forest and matrix profile.

All three are judged by one rule. A detector gives every sample of the recording a score. A beat's
score is the largest among the samples within 150 ms of its annotation, the match window of
ANSI/AAMI EC57. Premature beats (A, V) are the anomalies; beats of the first five minutes do not
count. AUC-PR is average precision over the beats.

The peers see what contrastream sees: both leads, averaged over as many samples as leave --rate a
second or more. They get their best of several window lengths, and of three places that a window's
score may be given to: its first, middle or last sample. The random cut forest (Guha et al. 2016) also
gets its best of windows as they are and windows less their means. The matrix profile (Yeh et al. 2016)
comes whole, which looks ahead, and left, which does not; of each lead and of both.

    contrastream evaluate pipelines/waveform.toml --data record.parquet --out scores
    python ecg.py record.parquet record.beats.csv scores/record.csv

Needs numpy, pandas, pyarrow, scikit-learn, stumpy and rrcf.
"""

import argparse

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.metrics import average_precision_score

LEADS = ["MLII_mV", "V5_mV"]
PREMATURE = ["A", "V"]
AFTER = 300.0
MATCH = 0.150
TREE_SIZE = 256


class Beats:
    def __init__(self, path, rate):
        beats = pd.read_csv(path)
        beats = beats[beats["symbol"] != "+"]
        beats = beats[beats["sample"] > AFTER * rate]
        self.times = beats["sample"].to_numpy() / rate
        self.premature = beats["symbol"].isin(PREMATURE).to_numpy()

    def auc_pr(self, times, scores):
        """Average precision of scores at rising times, in seconds."""
        first = np.searchsorted(times, self.times - MATCH, "left")
        last = np.searchsorted(times, self.times + MATCH, "right")
        of_beats = [scores[a:b].max() if a < b else 0.0 for a, b in zip(first, last)]
        return average_precision_score(self.premature, of_beats)


def places(starts, samples, rate):
    """Times of a window's first, middle and last sample."""
    return {
        "first": starts / rate,
        "middle": (starts + samples // 2) / rate,
        "last": (starts + samples - 1) / rate,
    }


def random_cut_forest(windows, trees, seed):
    """Collusive displacement of each window as it comes, by the windows before it."""
    import rrcf

    np.random.seed(seed)
    forest = [rrcf.RCTree() for _ in range(trees)]
    scores = np.zeros(len(windows))
    for index, window in enumerate(windows):
        for tree in forest:
            if len(tree.leaves) >= TREE_SIZE:
                tree.forget_point(index - TREE_SIZE)
            tree.insert_point(window, index=index)
            scores[index] += tree.codisp(index) / trees
    return scores


def matrix_profiles(lead, samples):
    """Distance of each window to its nearest one, and to its nearest earlier one."""
    import stumpy

    found = stumpy.stump(lead, samples)
    whole = found[:, 0].astype(float)
    windows = sliding_window_view(lead, samples)
    centred = windows - windows.mean(1, keepdims=True)
    normed = centred / np.maximum(centred.std(1, keepdims=True), 1e-12)
    nearest = found[:, 2].astype(int)
    left = np.zeros(len(whole))
    known = np.flatnonzero(nearest >= 0)
    for rows in np.array_split(known, max(1, len(known) // 10_000)):
        left[rows] = np.linalg.norm(normed[rows] - normed[nearest[rows]], axis=1)
    finite = whole[np.isfinite(whole)]
    return np.where(np.isfinite(whole), whole, finite.max()), left


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("record", help="Parquet with sample, MLII_mV and V5_mV")
    arguments.add_argument("beats", help="CSV with sample and symbol")
    arguments.add_argument("scores", nargs="*", help="CSV files that contrastream evaluate wrote")
    arguments.add_argument("--sample-rate", type=int, default=360, help="of the record, a second")
    arguments.add_argument("--rate", type=int, default=60, help="samples a second for the peers")
    arguments.add_argument("--windows", default="0.4,0.5,0.7,0.8,1,1.5,2", help="seconds")
    arguments.add_argument("--stride", type=float, default=0.1, help="of the forest, seconds")
    arguments.add_argument("--trees", type=int, default=40, help="of the forest")
    arguments.add_argument("--peers", default="forest,profile", help="forest, profile or both")
    asked = arguments.parse_args()

    record = pd.read_parquet(asked.record)
    beats = Beats(asked.beats, asked.sample_rate)
    print(f"{len(beats.times)} beats, {beats.premature.sum()} premature: "
          f"chance {beats.premature.mean():.3f}")
    for path in asked.scores:
        scores = pd.read_csv(path)
        times = scores["sample"].to_numpy() / asked.sample_rate
        auc = beats.auc_pr(times, scores["anomaly_score"].to_numpy())
        print(f"contrastream {path}: {auc:.3f}")

    step = asked.sample_rate // asked.rate
    rate = asked.sample_rate / step
    values = record[LEADS].to_numpy(float)
    values = values[: len(values) // step * step].reshape(-1, step, len(LEADS)).mean(1)
    values = (values - values.mean(0)) / values.std(0)
    best = {}

    def judge(peer, detail, starts, samples, scores):
        for place, times in places(starts, samples, rate).items():
            auc = beats.auc_pr(times, scores)
            print(f"  {peer}, {detail}, to the {place} sample: {auc:.3f}", flush=True)
            best[peer] = max(best.get(peer, (0.0, "")), (auc, f"{detail}, {place} sample"))

    for seconds in map(float, asked.windows.split(",")):
        samples = round(seconds * rate)
        if "profile" in asked.peers:
            starts = np.arange(len(values) - samples + 1)
            leads = [matrix_profiles(values[:, lead], samples) for lead in range(len(LEADS))]
            for kind, peer in enumerate(["matrix profile, whole", "matrix profile, left"]):
                of_leads = [profiles[kind] for profiles in leads]
                for name, scores in zip([*LEADS, "both"], [*of_leads, sum(of_leads)]):
                    judge(peer, f"{seconds} s, {name}", starts, samples, scores)
        if "forest" in asked.peers:
            stride = max(1, round(asked.stride * rate))
            windows = sliding_window_view(values, samples, axis=0)[::stride]
            starts = np.arange(len(windows)) * stride
            centred = windows - windows.mean(2, keepdims=True)
            for name, kind in [("as they are", windows), ("less their means", centred)]:
                scores = random_cut_forest(
                    kind.reshape(len(kind), -1), asked.trees, seed=1)
                judge("random cut forest", f"{seconds} s, {name}", starts, samples, scores)
    for peer, (auc, detail) in best.items():
        print(f"{peer}: {auc:.3f} ({detail})")


if __name__ == "__main__":
    main()
