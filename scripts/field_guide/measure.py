"""Run one package of rows.py and print what its weight decay does, as JSON.

    python measure.py timm     in an environment that has timm, without wdjax

What is run of every row, from a matrix of ±2 and a vector of ±2 (some also scale by their size):

    constant     three steps with zero gradients at η = 0.1 and λ = 0.1
    lr doubled   the same, built with η = 0.2
    lr halved    built with η = 0.1, which a schedule halves after the first step
    λ doubled    λ = 0.2
    default      no λ given
    gradients    four steps with fixed gradients, η halved after the second; and again without λ,
                 which tells where in the step decay acts
    bfloat16     300 steps with zero gradients from weights of 1, η = 0.001
"""

import importlib.metadata
import itertools
import json
import re
import sys
import warnings

import numpy as np
from families import course
from rows import PACKAGES

LR, WD, STEPS = 0.1, 0.1, 3
SIGNS = (np.array([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]), np.array([-1.0, 1.0]))
RNG = np.random.default_rng(0)
START = [RNG.normal(size=signs.shape) for signs in SIGNS]
GRADIENTS = [[RNG.normal(size=signs.shape) for signs in SIGNS] for _ in range(4)]
RATES = (LR, LR, LR / 2, LR / 2)


def fractions(weights):
    """Return what each step took off: a number, or smallest and largest where entries differ."""
    taken = []
    for before, after in itertools.pairwise(weights):
        ratio = 1 - np.asarray(after) / np.asarray(before)
        low, high = float(ratio.min()), float(ratio.max())
        taken.append(number(low) if high - low < 1e-6 else [number(low), number(high)])
    return taken


def number(x):
    """Round to the digits that float64 keeps through a few steps; write NaN as a word."""
    if not np.isfinite(x):
        return str(x)
    return float(f"{x:.12g}") if abs(x) > 1e-12 else 0.0


def pairs(old, new):
    """Enumerate the weights before and after a step, part by part."""
    return enumerate(zip(old, new, strict=True))


def distance(a, b):
    """Return how far apart the last weights of two runs are."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a[-1], b[-1], strict=True))


class Runner:
    """The runs of one row."""

    def __init__(self, package, row, names):
        """Remember how its weights are stepped."""
        self.package, self.row, self.names = package, row, names
        self.parts = 1 if row.matrix_only else 2

    def weights(self, start, gradients, rates, *, code=None, wd=WD, dtype=None, change=None):
        """Return the weights before the first step and after each; see `families.course`."""
        return course(
            self.package.family,
            code or self.row.code,
            self.names,
            [np.array(x) for x in start[: self.parts]],
            lambda t, now: [np.array(g) for g in gradients(t, now)[: self.parts]],
            rates,
            wd,
            dtype or self.package.dtype,
            change,
        )

    def taken(self, *, rates=(LR,) * STEPS, **given):
        """Return the fractions that steps with zero gradients take off, of matrix and vector."""
        start = [2 * signs for signs in SIGNS]
        zero = [np.zeros_like(signs) for signs in SIGNS]
        weights = self.weights(start, lambda t, now: zero, rates, **given)
        return [fractions([step[i] for step in weights]) for i in range(self.parts)]

    def apart(self, weights, plain):
        """Return how far each place of decay is from the truth, beside what decay did at all.

        Each guess runs the optimizer without λ: with λθ added to its gradients, or with decay that
        we take off its weights ourselves, before or after its step.
        """
        s = self.taken(rates=RATES)
        added = lambda t, now: [g + WD * w for g, w in zip(GRADIENTS[t], now, strict=False)]
        given = lambda t, now: GRADIENTS[t]
        shrunk = {
            "before": lambda t, old, new: [b - s[i][t] * a for i, (a, b) in pairs(old, new)],
            "after": lambda t, old, new: [(1 - s[i][t]) * b for i, (_, b) in pairs(old, new)],
        }
        guesses = {"coupled": self.weights(START, added, RATES, wd=0.0)}
        if all(isinstance(x, float) for part in s for x in part):  # one for all entries
            guesses |= {
                place: self.weights(START, given, RATES, wd=0.0, change=change)
                for place, change in shrunk.items()
            }
        effect = distance(weights, plain)
        if effect < 1e-9:
            return {}
        return {
            place: float(f"{distance(weights, guess) / effect:.1e}")
            for place, guess in guesses.items()
        }

    def rounded(self):
        """Return the mean weight after 300 steps in bfloat16, or why it did not run."""
        ones = [np.ones_like(signs) for signs in SIGNS]
        zero = [np.zeros_like(signs) for signs in SIGNS]
        try:
            last = self.weights(ones, lambda t, now: zero, [1e-3] * 300, dtype="bfloat16")[-1]
        except Exception as error:
            return f"fails: {type(error).__name__}"
        return number(float(f"{np.mean(last[0]):.4g}"))

    def __call__(self):
        """Run everything."""
        given = lambda t, now: GRADIENTS[t]
        weights = self.weights(START, given, RATES)
        plain = self.weights(START, given, RATES, wd=0.0)
        halved = (LR, LR / 2, LR / 2)
        runs = {
            "constant": self.taken(),
            "lr doubled": self.taken(rates=(2 * LR,) * STEPS),
            "lr halved": self.taken(rates=halved),
            "λ doubled": self.taken(wd=2 * WD),
            "default": self.taken(code=self.row.unset),
        }
        return {
            "code": self.row.code,
            **runs,
            "apart": self.apart(weights, plain),
            "weights": [[number(x) for x in part.ravel()] for part in weights[-1]],
            "plain": [[number(x) for x in part.ravel()] for part in plain[-1]],
            "bfloat16": self.rounded() if self.package.bfloat16 else "not run",
        }


def main(name):
    """Print version and rows; what fails is said and left out."""
    warnings.simplefilter("ignore")
    package = PACKAGES[name]
    rows, names = {}, {}
    exec(package.imports, names)
    for row in package.rows:
        try:
            with np.errstate(all="ignore"):
                rows[row.name] = Runner(package, row, names)()
        except Exception as error:
            text = re.sub(r"\s+", " ", str(error))[:200]
            print(f"{name} {row.name}: {type(error).__name__}: {text}", file=sys.stderr)
    version = (
        package.clone.partition("==")[2]
        or importlib.metadata.version(package.distribution or name).partition("+")[0]
    )
    print("\n" + json.dumps({"version": version, "dtype": package.dtype, "rows": rows}))


if __name__ == "__main__":
    main(sys.argv[1])
