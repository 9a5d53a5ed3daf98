"""How decay acts on one kind of leaf, judged by its updates at one state."""

from typing import Any, NamedTuple

import numpy as np

from wdjax.audit._machine import Arrays
from wdjax.audit._probe import Probe, Response, dot, fraction, norm
from wdjax.audit._pull import decays_in, same_in

_ROUNDING = 3e-7  # of a sum of updates, in float32
_ALIKE = 1e-3  # two measured fractions within this are one
_MOST_SETTLING = 2**14  # calls


class Seen(NamedTuple):
    """What is seen of one kind of leaf at one state.

    Attributes:
        acts: how decay acts there.
        fraction: taken off in a real step; None where it is not a number.
        why: why it is None, for people.
        pull: positive shrinks weights without gradients, negative grows them.
        places: at how many places decay enters.
        gated: only some entries decay at a time.
    """

    acts: str
    fraction: float | None
    why: str = ""
    pull: float = 0.0
    places: int = 1
    gated: bool = False


def judged(probe: Probe, state: Any) -> list[Seen]:
    """Say of each kind how decay acts from this state on."""
    noise = probe.noise()
    still, moving = probe.responses(state), probe.responses(state, noise)
    memory = _memory(probe, state)
    slopes = probe.slopes(state, noise) if any(map(_answers, still)) else None
    seen = []
    for i, (z, r) in enumerate(zip(still, moving, strict=True)):
        slope = None if slopes is None else float(slopes[i])
        answers = Answers(z, r, slope, *memory[i])
        seen.append(_judge(answers) if _answers(z) else _silent(z, r))
    if any(s.acts == "unknown" and not _answers(z) for s, z in zip(seen, still, strict=True)):
        again = probe.responses(state, noise, settled=True)  # lbfgs looks at how weights moved
        seen = [
            s if _answers(z) else _silent(z, r) for s, z, r in zip(seen, still, again, strict=True)
        ]
    if any(s.acts == "none" for s in seen):
        seen = _elsewhere(probe, state, seen)
    if any(s.acts == "gradient" and s.fraction is not None for s in seen):
        seen = _settled(probe, state, seen)
    return _by_places(probe, state, noise, seen)


def _answers(z: Response) -> bool:
    """Tell whether updates without gradients depend on the weights, rounding apart."""
    straight = z.change > 0 and not (z.change < 1e-6 and z.aside > 0.5)
    return not z.finite or straight or (z.pull * z.odd > 0 and abs(z.odd) > 1e-3 * z.size)


def _silent(z: Response, r: Response) -> Seen:
    """Judge a kind that does not move without gradients."""
    noise = 10 * _ROUNDING * (1 + r.size)
    depends = r.aside < 0.05 and abs(r.fraction) > noise and r.finite
    if depends or (r.pull * r.odd > 0 and abs(r.odd) > max(noise, 0.95 * r.mean)):
        return Seen("unknown", None, "the strength of the decay depends on the gradients", r.odd)
    return Seen("none", 0.0)


class Answers(NamedTuple):
    """What one kind answers.

    Attributes:
        z: without gradients.
        r: to random gradients.
        slope: f by differentiation at these, or None.
        memory: f of the next update by the weights of this one.
        changed: by how much the next update differs, as a fraction of the weights.
    """

    z: Response
    r: Response
    slope: float | None
    memory: float
    changed: float

    @property
    def noise(self) -> float:
        """Rounding of a fraction, where gradients move weights as far as they do."""
        return _ROUNDING * (1 + self.r.size)

    @property
    def remembers(self) -> bool:
        """Whether the state holds weights that were seen."""
        least = 0.01 * self.noise + _ALIKE * abs(self.z.fraction)
        return abs(self.memory) > least

    @property
    def same(self) -> bool:
        """Whether random gradients leave the fraction as it is."""
        z, r = self.z.fraction, self.r.fraction
        return abs(z - r) <= _ALIKE * abs(z) + self.noise


def _judge(answers: Answers) -> Seen:
    """Judge one kind by what it answers: the first that fits."""
    for verdict in (_no_number, _normalised, _aside, _bent, _remembered, _modulated, _doubted):
        seen = verdict(answers)
        if seen is not None:
            return seen._replace(pull=answers.z.odd)
    z = answers.z
    to_a_point = z.even > _ALIKE * abs(z.odd) and answers.changed < 0.3 * z.even  # noise changes
    return Seen("point" if to_a_point else "weights", z.fraction, pull=z.odd)


def _no_number(answers: Answers) -> Seen | None:
    if answers.z.finite:
        return None
    return Seen("unknown", None, "the update without a gradient is not a number")


def _normalised(answers: Answers) -> Seen | None:
    """The length of the weights plays no part: L1 and its kin, or L2 inside Adam."""
    z, r = answers.z, answers.r
    if z.change > _ALIKE * abs(z.odd):
        return None
    if abs(answers.memory) < 1e-12 and abs(z.odd - r.odd) <= 0.3 * abs(z.odd):
        return Seen("constant", None, "the decay takes off lengths, not fractions")
    return Seen("gradient", None, "the optimizer normalizes the decay")


def _aside(answers: Answers) -> Seen | None:
    if answers.z.aside <= 0.01:
        return None
    if answers.remembers:
        return Seen("gradient", None, "the optimizer normalizes the decay")
    return Seen("unknown", None, "the pull is not along the weights")


def _bent(answers: Answers) -> Seen | None:
    """U is not a straight line in θ: from −θ to θ it does not change as from θ to 2θ."""
    z = answers.z
    if abs(z.odd - z.fraction) <= 0.01 * abs(z.fraction):
        return None
    if z.odd > z.fraction > 0:
        return Seen("constant", z.fraction, "a part of the decay takes off lengths")
    return Seen("unknown", None, "the pull depends on the length of the weights")


def _remembered(answers: Answers) -> Seen | None:
    """Momentum holds decay; an average of the weights as anchor has the other sign."""
    if not answers.remembers or answers.memory * answers.z.fraction < 0:
        return None
    if answers.same:
        return Seen("gradient", answers.z.fraction)
    return Seen("gradient", None, "gradients change the strength of the decay")


def _modulated(answers: Answers) -> Seen | None:
    """Gradients change the fraction: a gate that holds some back, or a trust ratio."""
    if answers.same:
        return None
    if _stays(answers.z, answers.r):
        return Seen("weights", answers.z.fraction, gated=True)
    return Seen("gradient", None, "gradients change the strength of the decay")


def _stays(z: Response, r: Response) -> bool:
    """Whether decay stays on the weights under random gradients; a gate may hold a part back."""
    share = r.fraction / z.fraction if z.fraction else 0.0
    return 0.3 < share < 1.7 and r.aside < 0.5


def _doubted(answers: Answers) -> Seen | None:
    z, slope = answers.z.fraction, answers.slope
    if slope is None or abs(slope - z) <= 0.01 * abs(z) + answers.noise:
        return None
    return Seen("unknown", None, "two ways to measure the decay disagree")


def _elsewhere(probe: Probe, state: Any, seen: list[Seen]) -> list[Seen]:
    """Look also at much shorter and much longer weights."""
    why = "decay acts only on weights that are much shorter or longer than most"
    here = probe.still(state)
    pulled = np.zeros(len(seen), bool)
    for scale in (1e-2, 1e2):
        for i, (u, h, w) in enumerate(
            zip(probe.still(state, scale), here, probe.weights, strict=True)
        ):
            pulled[i] |= -dot(u - h, w) > max(1e-5 * scale * dot(w, w), 0.1 * norm(u - h) * norm(w))
    return [
        Seen("unknown", None, why) if s.acts == "none" and hit else s
        for s, hit in zip(seen, pulled, strict=True)
    ]


def _memory(probe: Probe, state: Any, factor: Any = 1.0) -> list[tuple[float, float]]:
    """How much a step at twice the weights adds to the pull of the next one; how much it changes.

    For each kind: f of the next update by the weights of this one, and ‖U⁺(θ) − U(θ)‖ / ‖θ‖.
    """
    run = probe.machine.run
    after = [
        run(
            probe.theta,
            probe.quiet[0],
            state,
            calls=probe.period,
            scales=1.0 + s * factor,
            pinned=True,
        ).state
        for s in (0.0, 1.0)
    ]
    once, twice = (probe.still(x) for x in after)
    before = probe.still(state)
    return [
        (fraction(a, b, w), norm(a - u) / (norm(w) or 1.0))
        for u, a, b, w in zip(before, once, twice, probe.weights, strict=True)
    ]


def _settled(probe: Probe, state: Any, seen: list[Seen]) -> list[Seen]:
    """Hold the weights until momentum has settled, and measure then."""
    run = probe.machine.run
    ends = [(s, state) for s in (1.0, 2.0)]
    linear = [i for i, s in enumerate(seen) if s.acts == "gradient" and s.fraction is not None]
    before, calls = np.zeros(len(seen)), 16 * probe.period
    while True:
        ends = [
            (s, run(probe.theta, probe.quiet[0], x, calls=calls, scales=s, pinned=True).state)
            for s, x in ends
        ]
        once, twice = (probe.still(x, s) for s, x in ends)
        now = np.array([fraction(*x) for x in zip(once, twice, probe.weights, strict=True)])
        settled = (np.abs(now - before) <= 1e-8 * np.abs(now))[linear].all()
        if settled or calls >= _MOST_SETTLING:
            break
        before, calls = now, 2 * calls
    return [s._replace(fraction=float(now[i])) if i in linear else s for i, s in enumerate(seen)]


def _by_places(probe: Probe, state: Any, noise: Arrays, seen: list[Seen]) -> list[Seen]:
    """Look at each place at which weights enter by itself."""
    machine = probe.machine
    if machine.sites > 1:
        seen = _each_place(probe, state, noise, seen)
    return [
        s if s.acts == "none" else s._replace(places=max(s.places, times))
        for s, times in zip(seen, machine.repeats, strict=True)
    ]


def _each_place(probe: Probe, state: Any, noise: Arrays, seen: list[Seen]) -> list[Seen]:
    each = [
        (
            probe.responses(state, None, one),
            probe.responses(state, noise, one),
            _memory(probe, state, one),
        )
        for one in np.eye(probe.machine.sites)
    ]
    return [
        _with_places(s, [(z[i], r[i], m[i][0]) for z, r, m in each]) for i, s in enumerate(seen)
    ]


def _with_places(seen: Seen, places: list[tuple[Response, Response, float]]) -> Seen:
    """Count the places; tell "both" from "gradient"."""
    if seen.acts in ("none", "unknown"):
        return seen
    answered = [each for each in places if each[0].finite and _answers(each[0])]
    if seen.acts not in ("weights", "gradient"):
        return seen._replace(places=max(1, same_in([z for z, _, _ in answered])))
    direct: list[float] = []
    through: list[float] = []
    for z, r, memory in answered:
        plain = z.aside < 0.01 and _stays(z, r)
        remembers = abs(memory) > 0.01 * abs(z.odd)
        (direct if plain and not remembers else through).append(z.fraction)
    if seen.acts == "gradient" and direct and through:
        count = decays_in(direct + through)  # a method that keeps a length takes and gives back
        return seen._replace(acts="both", places=count) if count > 1 else seen
    return seen._replace(places=max(1, decays_in(direct)) if seen.acts == "weights" else 1)
