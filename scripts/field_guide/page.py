"""Write docs/field_guide.md from rows.py and measured.json.

python scripts/field_guide/page.py            print it
python scripts/field_guide/page.py --write    write it
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

from rows import PACKAGES, Row

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "field_guide.md"
Seen = dict
Reading = tuple[str, float, tuple[float, ...]]  # of which run, with which λ and rates

READINGS: tuple[Reading, ...] = (
    ("constant", 0.1, (0.1, 0.1, 0.1)),
    ("lr doubled", 0.1, (0.2, 0.2, 0.2)),
    ("lr halved", 0.1, (0.1, 0.05, 0.05)),
    ("λ doubled", 0.2, (0.1, 0.1, 0.1)),
)
SIZE = 2.0  # of the weights at the start, so that what scales by it shows
SAME = 1e-3  # apart by less of what decay does: the same place

LAWS = {
    # s(t) as the page writes it: of λ, η, its first value, RMS(θ), and the step
    "λη": lambda lam, lr, first, rms, t: lam * lr,
    "λ": lambda lam, lr, first, rms, t: lam,
    "λη/η₀": lambda lam, lr, first, rms, t: lam * lr / first,
    "λη²/η₀": lambda lam, lr, first, rms, t: lam * lr**2 / first,
    "λη²": lambda lam, lr, first, rms, t: lam * lr**2,
    "λη/(1 + λη)": lambda lam, lr, first, rms, t: lam * lr / (1 + lam * lr),
    "λη·RMS(θ)": lambda lam, lr, first, rms, t: lam * lr * rms,
    "λη/RMS": lambda lam, lr, first, rms, t: lam * lr / rms,
    "λη/3": lambda lam, lr, first, rms, t: lam * lr / 3,
    "10 λη": lambda lam, lr, first, rms, t: 10 * lam * lr,
    "λη/100": lambda lam, lr, first, rms, t: lam * lr / 100,
    "η": lambda lam, lr, first, rms, t: lr,
    "0 in the first step, then λη": lambda lam, lr, first, rms, t: lam * lr * (t > 0),
    "2λη/(rows + columns)": lambda lam, lr, first, rms, t: 2 * lam * lr / 5,
    "−λη": lambda lam, lr, first, rms, t: -lam * lr,
    "−λ": lambda lam, lr, first, rms, t: -lam,
}


def predicted(law, lam: float, rates: tuple[float, ...]) -> Iterator[float]:
    """Yield what a law takes off in each step."""
    size = SIZE
    for t, rate in enumerate(rates):
        s = law(lam, rate, rates[0], size, t)
        yield s
        size *= 1 - s


def law(seen: Seen, part: int) -> str | None:
    """Return the law that gives all readings of the matrix (part 0) or the vector (1)."""
    for name, formula in LAWS.items():
        if all(
            isinstance(got, float) and math.isclose(got, want, rel_tol=1e-3, abs_tol=1e-6)
            for run, lam, rates in READINGS
            for got, want in zip(seen[run][part], predicted(formula, lam, rates), strict=True)
        ):
            return name
    return None


def kind(seen: Seen) -> str:
    """Return where decay acts, by which of the three explains the weights."""
    apart = seen["apart"]
    if not apart:
        return "not at all"
    fits = {place: x for place, x in apart.items() if x < SAME}
    if {"coupled", "before"} <= fits.keys():
        return "either: the same"
    if not fits:
        return "neither"
    place = min(fits, key=fits.get)
    return place if place == "coupled" else f"decoupled, {place}"


def strength(row: Row, seen: Seen) -> str:
    """Return s(t) in words, or the fractions themselves."""
    if row.law:
        return row.law
    parts = [
        (kind(seen) != "coupled" and law(seen, part)) or numbers(taken)
        for part, taken in enumerate(seen["constant"])
    ]
    if len(set(parts)) == 1:
        return parts[0]
    return f"matrices: {parts[0]}; vectors: {parts[1]}"


def numbers(fractions: list) -> str:
    """Show three fractions, or the range of each; one where all are the same."""
    both = [[*map(short, x)] if isinstance(x, list) else [short(x)] for x in fractions]
    shown = [x[0] if x[0] == x[-1] else " to ".join(x) for x in both]
    return shown[0] if len(set(shown)) == 1 else ", ".join(shown)


def short(x: float | str) -> str:
    """Show a number in three digits."""
    return x if isinstance(x, str) else f"{x:.3g}".replace("-", "−")


def default(row: Row, seen: Seen) -> str:
    """Return λ by default, from what it takes off beside what 0.1 does."""
    if row.default:
        return row.default
    with_tenth, unset = (_least(seen[run][0][-1]) for run in ("constant", "default"))
    if isinstance(unset, str):  # not a number
        return "unknown"
    return short(0.1 * unset / with_tenth) if unset else "0"


def _least(x: float | list) -> float:
    return x[0] if isinstance(x, list) else x


def left_out(row: Row, seen: Seen) -> str:
    """Return what does not decay unless it is asked to."""
    if row.left_out or len(seen["constant"]) == 1:
        return row.left_out
    matrix, vector = (any(taken) for taken in seen["constant"])
    if matrix and not vector:
        return "vectors"
    return "matrices" if vector and not matrix else "nothing" if matrix else "all"


def rounded(seen: Seen) -> str:
    """Return what is left of 1 in bfloat16."""
    left = seen["bfloat16"]
    return left if isinstance(left, str) else "1: lost" if left == 1 else short(left)


def answer(row: Row) -> str:
    """Return the line of wdjax, or why there is none."""
    if not row.line:
        return row.why
    return f"`{row.line}`" + (f" ({row.note})" if row.note else "")


def table(name: str, seen: Seen) -> str:
    """Return the section of a package."""
    package = PACKAGES[name]
    lines = [
        ("optimizer", "you write", "decay is", "s(t)", "default λ", "left out", "bfloat16"),
        ("---",) * 7,
    ]
    for row in package.rows:
        if row.name in seen["rows"]:
            got = seen["rows"][row.name]
            lines.append((f"`{row.name}`", answer(row), kind(got), strength(row, got),
                          default(row, got), left_out(row, got), rounded(got)))  # fmt: skip
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"## {package.title} {seen['version']}\n\nRun on {seen['day']}.\n\n{body}\n"


def page(measured: dict) -> str:
    """Return docs/field_guide.md."""
    rows = [row for seen in measured.values() for row in seen["rows"].values()]
    kinds = [kind(row) for row in rows]
    decoupled = [row["bfloat16"] for row in rows if kind(row).startswith("decoupled")]
    introduction = INTRODUCTION.format(
        rows=len(kinds),
        packages=len(measured),
        decoupled=len(decoupled),
        coupled=kinds.count("coupled"),
        others=len(kinds) - len(decoupled) - kinds.count("coupled"),
        lost=decoupled.count(1),
    )
    return "\n".join([introduction, *(table(name, measured[name]) for name in measured)])


def load() -> dict:
    """Return what the runs wrote."""
    return json.loads((HERE / "measured.json").read_text(encoding="utf-8"))


INTRODUCTION = """\
# You come from …: what do you write?

<!-- written by `python scripts/field_guide/page.py --write`; a test compares the two -->

The same two words, `weight_decay=0.1`, mean different things in different packages. Below are
{rows} optimizers of {packages} packages. Each row was run: it says what the optimizer did at that
version, not what its documentation says. [Surprises](surprises.md) has the odd ones in words.

{decoupled} of them take decay off the weights, {coupled} put it into the gradient, and {others} do
something else. At a learning rate of 0.001 and λ = 0.1, {lost} of the {decoupled} lose all of it in
bfloat16.

## How to read a row

- **you write** is the line for wdjax, or why there is none. A test runs every line: it takes off
  what was measured from the other package, at a constant rate, at twice the rate, at twice λ, and
  while a schedule halves the rate. Where a line names the whole optimizer, it also makes the same
  steps. The two agree to 1e-9 if the other package computes in float64, else to 3e-6; Muon, which
  iterates in bfloat16, to 0.02, and a few keep
  single numbers in float32, to 1e-7.
- **decay is** says where decay acts. *coupled*: λθ joins the gradient, and passes through momentum
  and preconditioner. *decoupled, before*: (1 − s)θ + Δ, with the optimizer's own step Δ; this is
  AdamW. *decoupled, after*: (1 − s)(θ + Δ). *neither*: none of the three explains the weights.
- **s(t)** is the fraction of a weight that goes in one step whose gradient is zero. η is the
  learning rate and η₀ its first value. Numbers stand for λ = 0.1, η = 0.1, weights of ±2 and the
  first three steps. A negative number means that weights grow.
- **default λ** is what you get without asking.
- **left out** is what does not decay by default.
- **bfloat16** is what 300 steps at η = 0.001 and λ = 0.1 leave of a weight of 1. For s = λη exact
  is 0.970; 1 means that every step rounded away.
- **at** in a title names a commit: the project's own function was run from its repository. MaxText,
  Levanter, big_vision and EasyLM make their schedule from a configuration; the runs put the rates
  above in its place.

The lines use these names. `lr` may be a number or a schedule, and `peak` is its first or largest
value. `base` is your own optimizer without decay: a function of the learning rate.

```python
import functools

import optax
import wdjax
from wdjax import convert

lr, wd, peak = 0.1, 0.1, 0.1
base = optax.sgd
everything = (("**", 1.0),)
optimizer = wdjax.decayed(base)(lr, weight_decay=wd, rules=everything)
```

`rules=everything` is there because the other package decays everything. Leave it out, and wdjax
decays [matrices](which.md) only, which is probably what you want.
"""


def main() -> None:
    """Print the page or write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args()
    text = page(load())
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
