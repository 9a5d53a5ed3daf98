"""How decay goes over a run: one finding for each kind of leaf of a machine.

A run is not trained through. Its steps are visited: the state's step counts are set by their names,
and the next real step is measured. The first steps are really taken, and must agree.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from wdjax.audit._compiled import BLOCK, Compiled
from wdjax.audit._judge import Seen, judged
from wdjax.audit._machine import Machine
from wdjax.audit._probe import Probe, Response, Walk, walk
from wdjax.audit._pull import Pull, pulls
from wdjax.audit._trials import grows, skipped_steps

_FIRST = 4  # real steps that are really taken
_FEW = 17  # visits that tell whether the step plays a part
_MOST = 4096  # visits of a run in which it does
_MOST_WORK = 2**23  # numbers times visits
_MOST_WORK_OF_ALL = 2**30  # the same, where every step is wanted
_WITHOUT_END = 10**6  # steps looked at where the length of the run is not known
_MOST_SIMULATED = 2**14  # calls

_NOT_READ = {  # class of a state -> why its decay cannot be read from the updates
    "ScheduleFreeState": "schedule_free mixes two sequences of weights",
    "MechanicState": "mechanize scales the sum of all updates by what it learns",
    "ProdigyState": "prodigy learns its step from the gradients",
    "DAdaptAdamWState": "dadapt learns its step from the gradients",
    "MadgradState": "madgrad computes weights from sums of gradients and the first weights",
    "COCOBState": "cocob computes weights from sums of gradients and the first weights",
    "SAMState": "sam alternates between two kinds of steps",
}


_UNNAMED = "the strength of the decay changes with the state, not with a named step count"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is known of one kind of leaf.

    Attributes:
        acts: how decay acts.
        shrink: the largest fraction taken off in a step; None where it is not a number.
        step: the first step that has it; None where all steps do.
        left: of an untouched weight at the end; None where it is not known.
        why: what could not be measured, and why.
        pull: positive shrinks, negative grows, without gradients.
        places: at how many places of the program decay enters.
        repeats: how many calls of one real step decay.
        frozen: no gradient moves it.
        skipped: it decays in steps that are skipped for a NaN.
        gated: only some entries decay at a time.
        swallowed: decay leaves every weight of its dtype as it was.
        calls: for a real step.
        grows: its updates cannot be read, but it gets longer without gradients.
        counts: the steps visited.
        curve: fractions taken off there.
        taken: the share of ordinary weights that a step without gradients takes off.
        way: the share of their way to where they are pulled that it takes.
    """

    acts: str
    shrink: float | None
    step: int | None = None
    left: float | None = None
    why: str = ""
    pull: float = 0.0
    places: int = 1
    repeats: int = 1
    frozen: bool = False
    skipped: bool = False
    gated: bool = False
    swallowed: bool = False
    calls: int = 1
    grows: bool = False
    counts: tuple[int, ...] = ()
    curve: tuple[float, ...] = ()
    taken: float = 0.0
    way: float = 0.0


def followed(machine: Machine, steps: int | None, every: bool = False) -> list[Finding]:
    """Measure every kind of leaf over a run; at all its steps, if `every` is wanted."""
    probe = Probe(machine)
    names = {name for name in machine.names if name in _NOT_READ}
    if names:
        why = _NOT_READ[min(names)]
        return [Finding("unknown", None, why=why, grows=longer) for longer in grows(probe)]
    return _Course(probe, steps, every).findings()


class _Course:
    """The measurements on one machine."""

    def __init__(self, probe: Probe, steps: int | None, every: bool) -> None:
        """Find what a real step is, and visit the run."""
        self.probe, self.steps, self.every = probe, steps, every
        self._known: dict[int, np.ndarray] = {}
        self.named = probe.machine.at(probe.state, 0) is not None
        self.walk = self._best_walk()
        probe.period = self.walk.period
        self.counts, self.curve = self._visits()
        self.first = self._first_steps()
        # a count may count calls or real steps
        calls = [np.arange(_FIRST), np.arange(_FIRST) * probe.period][: 1 + (probe.period > 1)]
        self.visited_first = [self._fractions_of_few(each) for each in calls]

    def findings(self) -> list[Finding]:
        """Judge each kind at the step at which it decays most."""
        kinds = len(self.probe.weights)
        found: dict[int, Finding] = {}
        best = self._telling_count()
        for count in dict.fromkeys([best, *self._own_peaks(best)]):
            state = self._at(count)
            seen = judged(self.probe, state)
            skipped = skipped_steps(self.probe, state)
            pull = pulls(self.probe, state)
            wanted = [i for i in range(kinds) if i not in found or self._peak(i) == count]
            for i in wanted:
                found[i] = self._finding(i, seen[i], count, skipped[i], pull[i])
        return [self._with_left(i, found[i]) for i in range(kinds)]

    # steps

    def _at(self, count: int) -> Any:
        moved = self.probe.machine.at(self.probe.state, count)
        return self.probe.state if moved is None else moved

    def _best_walk(self) -> Walk:
        """Walk from where gradients move most kinds: a rate may be 0 at first."""
        starts = [0] if not self.named else [0, *self._few()[[_FEW // 2, _FEW // 8]]]
        best = None
        for count in starts:
            found = walk(self.probe, self._at(int(count)))
            if best is None or found.moved.any(1).sum() > best.moved.any(1).sum():
                best = found
            if best.moved.any(1).all():
                break
        assert best is not None
        return best

    def _few(self) -> np.ndarray:
        """A few steps of the run, early ones among them."""
        if self.steps is None:
            far = np.geomspace(8, _WITHOUT_END, _FEW - 8).astype(int)
            return np.concatenate([np.arange(_FEW - len(far)), far])[:_FEW]
        return np.linspace(0, self.steps - 1, _FEW).astype(int)

    def _visits(self) -> tuple[np.ndarray, np.ndarray]:
        """Fractions at the steps of the run, (visits, kinds)."""
        if not self.named:
            return np.zeros(1, int), self.probe.fractions(self.probe.state)[None]
        few = np.unique(self._few())
        curve = self._fractions_of_few(few)
        still = np.ptp(curve, 0) <= 1e-5 * np.abs(curve).max(0)
        if still.all() or self.steps is None:
            return few, curve
        counts = sampled_counts(self.steps, self._most())
        return counts, self._fractions(counts)

    def _most(self) -> int:
        numbers = sum(w.size for w in self.probe.weights)
        if self.every:
            return max(_MOST, _MOST_WORK_OF_ALL // max(numbers, 1))
        return int(np.clip(_MOST_WORK // max(numbers, 1), 64, _MOST))

    def _fractions(self, counts: np.ndarray) -> np.ndarray:
        machine, probe = self.probe.machine, self.probe
        if isinstance(machine, Compiled):
            each = [
                machine.fractions(probe.theta, g, probe.state, counts, calls=probe.period)
                for g in probe.quiet
            ]
            mean: np.ndarray = np.mean(each, axis=0)
            return mean
        return np.array([probe.fractions(self._at(int(c))) for c in counts])

    def _fractions_of_few(self, counts: np.ndarray) -> np.ndarray:
        """The same without compiling a program for many."""
        return np.array([self.probe.fractions(self._at(int(c))) for c in counts])

    def _first_steps(self) -> list[list[Response]]:
        """Answers at the first real steps, with the states that training has there."""
        probe, state, found = self.probe, self.probe.state, []
        for _ in range(_FIRST):
            found.append(probe.along(state))
            noise = probe.noise()
            state = probe.machine.run(probe.theta, noise, state, calls=probe.period).state
        return found

    def _telling_count(self) -> int:
        """Return the step at which decay and gradients show most."""
        if not self.named:
            return 0
        few = np.unique(self._few())
        noise = self.probe.noise()
        sizes = np.array(
            [
                [float(np.abs(x).sum()) for x in self.probe.summed(self._at(int(c)), noise)]
                for c in few
            ]
        )
        curve = np.abs(self._fractions_of_few(few))
        score = _relative(sizes).sum(1) + _relative(curve).sum(1)
        return int(few[np.nanargmax(score)]) if np.isfinite(score).any() else 0

    def _peak(self, kind: int) -> int:
        sizes = np.nan_to_num(np.abs(self.curve[:, kind]))
        return int(self.counts[sizes.argmax()])

    def _own_peaks(self, best: int) -> list[int]:
        """Peaks of the kinds that decay little at the common step."""
        peaks = []
        at_best = np.abs(self.probe.fractions(self._at(best)))
        for kind, here in enumerate(at_best):
            if here < 0.5 * np.nan_to_num(np.abs(self.curve[:, kind])).max():
                peaks.append(self._peak(kind))
        return peaks[:4]

    # findings

    def _finding(self, kind: int, seen: Seen, count: int, skipped: bool, pull: Pull) -> Finding:
        history = self._history(kind, seen)
        if seen.acts == "none" and history:
            seen = Seen("unknown", None)
        curve = self.curve[:, kind]
        here = float(self.probe.fractions(self._at(count))[kind])
        shrink, step = seen.fraction, None
        if shrink is not None and here:
            curve = curve * (shrink / here)  # momentum, once settled, multiplies every step alike
            shrink, step = self._top(kind, curve, shrink / here)
        elif seen.acts != "none":
            curve = np.full(len(curve), math.nan)
        moved, pulled = self.walk.moved[kind], self.walk.pulled[kind]
        decays = seen.acts != "none"
        if seen.acts == "unknown" and pull.sign:
            seen = seen._replace(pull=float(pull.sign))
        idle = int((pulled & ~moved).sum())
        frozen = decays and not moved.any() and bool(pulled.any())
        each = idle >= 2 and moved.any() and decays
        return Finding(
            seen.acts,
            shrink,
            step,
            why=seen.why or history,
            pull=seen.pull,
            places=seen.places,
            repeats=_per_step(pulled, moved) if each else 1,
            frozen=frozen,
            skipped=skipped and decays and not frozen,
            gated=seen.gated,
            calls=self.probe.period,
            taken=pull.taken,
            way=pull.way,
            counts=tuple(int(c) for c in self.counts),
            curve=tuple(float(x) for x in curve),
        )

    def _top(self, kind: int, curve: np.ndarray, factor: float) -> tuple[float, int | None]:
        """Largest fraction, and the first step that has it; None where all steps do."""
        top = int(np.abs(curve).argmax())
        if np.ptp(curve) <= 1e-5 * abs(curve[top]):
            return float(curve[top]), None
        step = int(self.counts[top])
        if self.steps is None or len(self.counts) in (1, self.steps):
            return float(curve[top]), step
        near = self._near(step)
        nearest = factor * self._near_fractions(step)[:, kind]
        best = int(np.abs(nearest).argmax())
        return float(nearest[best]), int(near[best])

    def _near(self, step: int) -> np.ndarray:
        """Steps around one that was drawn from a long run."""
        return np.clip(np.arange(BLOCK) + step - BLOCK // 2, 0, (self.steps or 1) - 1)

    def _near_fractions(self, step: int) -> np.ndarray:
        if step not in self._known:
            self._known[step] = self._fractions(self._near(step))
        return self._known[step]

    def _history(self, kind: int, seen: Seen) -> str:
        """Say where steps that were taken differ from steps that were visited."""
        taken = [answers[kind] for answers in self.first]
        if seen.acts not in ("none", "weights", "point") or seen.gated:
            return ""
        rounding = 1e-6 * np.array([1 + answer.size for answer in taken])
        # a trust ratio makes steps along the momentum as long as weights are, whatever their sign
        if seen.acts == "none":
            pulls = np.array([abs(a.fraction) if a.aside < 0.05 else 0.0 for a in taken])
            return _UNNAMED if (pulls > rounding).any() else ""
        fractions = np.array([answer.odd for answer in taken])
        near = 1e-4 * np.abs(fractions) + np.minimum(rounding, 0.01 * np.abs(fractions).max())
        if any((np.abs(fractions - v[:, kind]) <= near).all() for v in self.visited_first):
            return ""
        return _UNNAMED

    def _with_left(self, kind: int, found: Finding) -> Finding:
        if self.steps is None:
            return found
        if found.acts == "none":
            return dataclasses.replace(found, left=1.0)
        if found.acts in ("weights", "point") and not found.why:
            return dataclasses.replace(found, left=left_of(found, self.steps))
        if found.acts in ("unknown", "constant") or found.shrink is None:
            return found  # it depends on the weights' own lengths
        ends = self._simulated()
        if ends is not None:
            return dataclasses.replace(found, left=float(ends[kind]))
        return found if found.why else dataclasses.replace(found, left=left_of(found, self.steps))

    def _simulated(self) -> np.ndarray | None:
        """What is left of each kind after the run without gradients; None if that is too long."""
        if not hasattr(self, "_ends"):
            self._ends = None
            probe = self.probe
            calls = (self.steps or 0) * probe.period
            if calls <= _MOST_SIMULATED and sum(w.size for w in probe.weights) * calls <= 2**30:
                ran = probe.machine.run(
                    probe.theta, probe.quiet[0], probe.state, calls=calls, moving=True
                )
                self._ends = np.array(
                    [
                        float(np.linalg.norm(np.ravel(np.asarray(x))) / np.linalg.norm(w.ravel()))
                        for x, w in zip(ran.theta, probe.weights, strict=True)
                    ]
                )
        return self._ends


def sampled_counts(steps: int, most: int) -> np.ndarray:
    """Every step, or one at random in each of `most` equal parts."""
    if steps <= most:
        return np.arange(steps)
    parts = np.arange(most) + np.random.default_rng(0).random(most)
    return np.minimum(parts * (steps / most), steps - 1).astype(int)


def left_of(found: Finding, steps: int) -> float:
    """Π_t (1 − f(t)) = exp(T · mean ln |1 − f|): exact if every step is there.

    Where k calls of a real step decay, each takes f / k off.
    """
    kept = np.abs(1 - np.asarray(found.curve) / found.repeats)
    if (kept == 0).any():
        return 0.0
    return math.exp(min(steps * found.repeats * float(np.log(kept).mean()), 700.0))


def _relative(x: np.ndarray) -> np.ndarray:
    finite = np.nan_to_num(x)
    share: np.ndarray = finite / np.maximum(finite.max(0, keepdims=True), 1e-300)
    return share


def _per_step(pulled: np.ndarray, moved: np.ndarray) -> int:
    """Calls that decay for each call that moves."""
    return max(2, round(float(pulled.sum()) / max(1, int(moved.sum()))))
