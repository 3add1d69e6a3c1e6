"""How often the verdict is wrong, and how often it finds what is there, on simulated comparisons.

    python -m benchmarks.verdict [--comparisons 10000] [--seed 1]

Every question has a difficulty, so that candidates are right and wrong on the same ones, as real ones are. A
line of the table is a set of candidates, one true effect (how many points more each tuned model is worth than
each rival) and one number of questions; each verdict comes from `app.comparisons.analysis.verdict`, by the
rule that the service uses. Beside the wins stands the power of McNemar's exact test alone, for one tuned
model and one rival, computed from the same truth, not simulated. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from app.comparisons.analysis.statistics import Scores, mcnemar
from app.comparisons.analysis.verdict import ALPHA, find_verdict
from app.comparisons.decision import Thresholds
from app.comparisons.plan import Candidate
from app.comparisons.results import RegressionResult

SIZES = (20, 50, 100, 200, 500)
EFFECTS = (-0.20, -0.10, -0.05, 0.0, 0.05, 0.10, 0.20)
RIVAL = 0.60
"""What each rival is worth."""
ALIKE = 0.5
"""Correlation of two candidates' luck on a question."""
GRADED_COMPARISONS = 1000
"""At most so many of graded scores: bootstrap and sign flips take a hundred times as long as closed forms."""
CODES = (
    "fine_tuning_wins",
    "fine_tuning_hurts",
    "prompting_is_enough",
    "no_difference_shown",
    "not_enough_data",
)
_normal = NormalDist()
_thresholds = Thresholds()


class Line(NamedTuple):
    """One line of the table."""

    rivals: int
    tuned: int
    effect: float
    size: int
    graded: bool = False
    loss: float | None = None
    """True loss on as many general questions; None: none are asked."""

    @property
    def title(self) -> str:
        kind = ", graded" if self.graded else f", loses {self.loss:.0%} elsewhere" if self.loss else ""
        return f"{self.rivals} rival{'s' * (self.rivals > 1)}, {self.tuned} tuned{kind}"


LINES = [
    *(
        Line(rivals, tuned, e, n)
        for rivals, tuned in ((1, 1), (3, 1), (3, 4))
        for e in EFFECTS
        for n in SIZES
    ),
    *(Line(2, 1, e, 50, graded=True) for e in (-0.05, 0.0, 0.05)),
    *(Line(1, 1, 0.0, n, loss=_thresholds.max_regression) for n in SIZES),
]


def main() -> None:
    """Prints the table and the worst rates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comparisons", type=int, default=10_000, help="of each line")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started = time.perf_counter()
    heads = ("wins", "hurts", "enough", "no diff.", "no data", "McNemar")
    print(f"{'':36} {'effect':>7} {'size':>5} " + " ".join(f"{head:>8}" for head in heads))
    false_wins: list[float] = []
    false_hurts: list[float] = []
    false_enough: list[float] = []
    missing: list[float] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        counts = [arguments.comparisons if not line.graded else GRADED_COMPARISONS for line in LINES]
        counts = [min(count, arguments.comparisons) for count in counts]
        seeds = [arguments.seed + place for place in range(len(LINES))]
        for line, count, found in zip(LINES, counts, pool.map(simulate, LINES, counts, seeds), strict=True):
            rates = {code: found[code] / count for code in CODES}
            power = mcnemar_power(line)
            theory = f"{power:8.2%}" if power is not None else f"{'':8}"
            print(
                f"{line.title:36} {line.effect:+7.0%} {line.size:5} "
                + " ".join(f"{rate:8.2%}" for rate in rates.values()),
                theory,
                flush=True,
            )
            if line.effect <= 0:
                false_wins.append(rates["fine_tuning_wins"])
            if line.effect >= 0:
                false_hurts.append(rates["fine_tuning_hurts"])
            if line.effect > _thresholds.margin:
                false_enough.append(rates["prompting_is_enough"])
            if power is not None and line.effect > _thresholds.margin and (line.rivals, line.tuned) == (1, 1):
                missing.append(power - rates["fine_tuning_wins"])
    print(
        json.dumps(
            {
                "comparisons_per_line": arguments.comparisons,
                "lines": len(LINES),
                "worst_false_wins": max(false_wins),
                "worst_false_hurts": max(false_hurts),
                "worst_false_enough": max(false_enough),
                "most_power_below_mcnemar": round(max(missing), 4),
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
    )


def simulate(line: Line, comparisons: int, seed: int) -> Counter[str]:
    """How often each verdict comes up."""
    generator = np.random.default_rng(seed)
    candidates = [
        *(
            Candidate(name=f"rival {n}", type="prompt" if n else "base", model="base")
            for n in range(line.rivals)
        ),
        *(Candidate(name=f"tuned {n}", type="model", model=f"ft:{n}") for n in range(line.tuned)),
    ]
    worth = [RIVAL] * line.rivals + [RIVAL + line.effect] * line.tuned
    found: Counter[str] = Counter()
    for _ in range(comparisons):
        regression: dict[str, RegressionResult] = {}
        if line.loss is not None:
            general = Scores(draw(generator, [RIVAL, RIVAL - line.loss], line.size, graded=False))
            regression["tuned 0"] = RegressionResult(
                candidate="tuned 0",
                base_score=general.means[0],
                score=general.means[1],
                loss=general.difference(0, 1),
                interval=general.difference_interval(0, 1),
                p_value=general.p_value(0, 1),
            )
        scores = Scores(draw(generator, worth, line.size, graded=line.graded), seed)
        found[find_verdict(candidates, scores, _thresholds, regression).code] += 1
    return found


def draw(generator: np.random.Generator, worth: list[float], size: int, *, graded: bool) -> np.ndarray:
    """Scores of candidates whose true means are `worth`, on questions of random difficulty."""
    ease = generator.standard_normal(size)
    luck = generator.standard_normal((len(worth), size))
    ability = math.sqrt(ALIKE) * ease + math.sqrt(1 - ALIKE) * luck
    if not graded:
        return (ability < np.array([[_normal.inv_cdf(share)] for share in worth])).astype(np.float64)
    # Any score from 0 to 1, whose mean is the share that is wanted.
    shift = np.array([[math.sqrt(2) * _normal.inv_cdf(share)] for share in worth])
    return np.vectorize(_normal.cdf)(shift + ability)


def mcnemar_power(line: Line) -> float | None:
    """How often McNemar's exact test finds one tuned model better than one rival, of 0/1 scores."""
    if line.graded:
        return None
    ease = np.linspace(-6, 6, 2001)
    weight = np.exp(-(ease**2) / 2)
    weight /= weight.sum()
    rival, tuned = (
        np.array(
            [
                _normal.cdf((_normal.inv_cdf(share) - math.sqrt(ALIKE) * e) / math.sqrt(1 - ALIKE))
                for e in ease
            ]
        )
        for share in (RIVAL, RIVAL + line.effect)
    )
    win, lose = float(weight @ (tuned * (1 - rival))), float(weight @ (rival * (1 - tuned)))
    power = 0.0
    for wins in range(line.size + 1):
        for losses in range(min(wins, line.size - wins + 1)):
            if mcnemar(wins, losses) <= ALPHA:
                ties = line.size - wins - losses
                ways = math.lgamma(line.size + 1) - sum(math.lgamma(n + 1) for n in (wins, losses, ties))
                odds = wins * math.log(win) + losses * math.log(lose) + ties * math.log(1 - win - lose)
                power += math.exp(ways + odds)
    return power


if __name__ == "__main__":
    main()
