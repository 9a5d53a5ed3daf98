"""What is certainly wrong: one function and one sentence for each."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from wdjax._trees import paths
from wdjax.audit._course import Finding

_DECAYS = ("weights", "gradient", "both", "constant", "point")
_NEVER_DECAY = ("bias", "norm/gain")  # kinds of `standard` that nobody means to decay


class Leaf(NamedTuple):
    """A leaf with what was found and what is wanted.

    Attributes:
        path: of the leaf.
        dtype: its own.
        rule: that decides it.
        guess: it is decided by its shape only.
        multiplier: that the rules give it.
        found: measured.
    """

    path: str
    dtype: str
    rule: str
    guess: bool
    multiplier: float
    found: Finding

    @property
    def decays(self) -> bool:
        """Whether anything takes it off, or adds to it."""
        return self.found.acts in _DECAYS


class Facts(NamedTuple):
    """All that the sentences speak of.

    Attributes:
        leaves: of the tree.
        steps: of the run, or None.
        given: the rules were given; else they are `standard()`.
        search: the optimizer asks for the loss, as a line search does.
        unreached: the paths of leaves that no gradient of the loss reaches.
    """

    leaves: list[Leaf]
    steps: int | None
    given: bool
    search: bool
    unreached: frozenset[str] = frozenset()


def _named(leaves: Iterable[Leaf]) -> str:
    return paths.listed(dict.fromkeys(leaf.path or "the array" for leaf in leaves))


def _for(leaves: list[Leaf], one: str, several: str) -> str:
    """The word for one leaf, or for several."""
    return one if len({leaf.path for leaf in leaves}) == 1 else several


def _which(facts: Facts, test: Callable[[Leaf], bool]) -> list[Leaf]:
    return [leaf for leaf in facts.leaves if leaf.decays and test(leaf)]


def _pulled(facts: Facts, test: Callable[[Leaf], bool]) -> list[Leaf]:
    """The same of decay of any kind, also of one that is not known."""
    return [leaf for leaf in facts.leaves if leaf.found.acts != "none" and test(leaf)]


def nothing_decays(facts: Facts) -> str | None:
    """Everything reads 0."""
    if not facts.leaves or any(leaf.found.acts != "none" for leaf in facts.leaves):
        return None
    return (
        "nothing decays: without a gradient no step takes anything off any weight. Does a mask "
        "leave everything out? Or does decay act on gradients alone, as in SPD, or in the loss, "
        "where no optimizer shows it?"
    )


def weights_grow(facts: Facts) -> str | None:
    """Decay of the wrong sign: before the learning rate, or added where it must be taken off."""
    grows = [
        x
        for x in facts.leaves
        if x.found.grows or (x.found.acts != "none" and _signed(x.found) < 0)
    ]
    if not grows:
        return None
    most = max((-leaf.found.shrink for leaf in grows if leaf.found.shrink), default=0.0)
    how = f" by {most:.3g} a step" if most else ""
    return (
        f"weights grow without a gradient{how}: {_named(grows)}. Decay comes before the learning "
        "rate, which flips its sign, or is added where it must be taken off; put "
        "wdjax.decay_weights last in the chain"
    )


def _signed(found: Finding) -> float:
    return found.pull if found.shrink is None else found.shrink


def repeats(facts: Facts) -> str | None:
    """Decay after MultiSteps, apply_every and the like."""
    often = _pulled(facts, lambda leaf: leaf.found.repeats > 1)
    if not often:
        return None
    return (
        f"{_named(often)} {_for(often, 'decays', 'decay')} {often[0].found.repeats} times per real "
        "step. Decay comes after the part that collects gradients or holds steps back, so it acts "
        "also in calls that make no step; put it inside, as in "
        "optax.MultiSteps(optax.chain(..., decay), k)"
    )


def frozen_decay(facts: Facts) -> str | None:
    """No gradient moves a leaf, and it fades."""
    fading = _pulled(facts, lambda leaf: leaf.found.frozen)
    if not fading:
        return None
    it = _for(fading, "it", "them")
    return (
        f"frozen weights decay: no gradient moves {_named(fading)}, but decay does; give {it} the "
        f"multiplier 0, or put decay inside the part that freezes {it}"
    )


def unreached_decay(facts: Facts) -> str | None:
    """No gradient reaches a leaf, and it fades."""
    fading = _pulled(facts, lambda x: x.path in facts.unreached and (x.decays or x.found.taken > 0))
    if not fading:
        return None
    fades, it = _for(fading, "it fades", "they fade"), _for(fading, "it", "them")
    return (
        f"no gradient of the loss reaches {_named(fading)}, but decay does, so {fades} away; give "
        f"{it} the multiplier 0 in `rules`, or keep {it} out of `params`"
    )


def skipped_decay(facts: Facts) -> str | None:
    """A NaN keeps all gradients out, and decay goes on."""
    skipped = _pulled(facts, lambda leaf: leaf.found.skipped)
    if not skipped:
        return None
    return (
        f"skipped steps decay: a step that a NaN gradient skips still shrinks {_named(skipped)}; "
        "put decay inside, as in optax.apply_if_finite(optax.chain(..., decay), n)"
    )


def swallowed(facts: Facts) -> str | None:
    """Measured: θ + u = θ."""
    lost = _pulled(facts, lambda leaf: leaf.found.swallowed)
    if not lost:
        return None
    dtypes = dict.fromkeys(leaf.dtype for leaf in lost)
    return (
        f"{paths.listed(dtypes)} {'swallow' if len(dtypes) > 1 else 'swallows'} this decay: the "
        f"change of each step rounds away, θ + u = θ, for {_named(lost)}; wrap the optimizer in "
        "wdjax.compensated, or keep these parameters in float32"
    )


def against_rules(facts: Facts) -> str | None:
    """Decay where the rules want none."""

    def unwanted(leaf: Leaf) -> bool:
        sure = facts.given or leaf.rule in _NEVER_DECAY
        return sure and leaf.multiplier == 0 and not leaf.found.frozen

    wrong = _which(facts, unwanted)
    if not wrong:
        return None
    given = f"`rules` give {_for(wrong, 'it', 'them')}"
    by = given if facts.given else "wdjax.standard() gives a bias or gain"
    return (
        f"{_named(wrong)} {_for(wrong, 'decays', 'decay')}, but {by} the multiplier 0; give the "
        "optimizer these rules, or mask=wdjax.mask(rules)"
    )


def missed_by_rules(facts: Facts) -> str | None:
    """No decay where rules that were given want some."""
    if not facts.given or not any(leaf.decays for leaf in facts.leaves):
        return None
    missed = [x for x in facts.leaves if x.multiplier > 0 and x.found.acts == "none"]
    if not missed:
        return None
    does, it = _for(missed, "does", "do"), _for(missed, "it", "them")
    return f"{_named(missed)} {does} not decay, but `rules` want {it} to; check the mask"


def unseen_by_search(facts: Facts) -> str | None:
    """A line search compares losses without the penalty."""
    moved = [leaf for leaf in facts.leaves if leaf.decays or leaf.found.pull]
    if not facts.search or not moved:
        return None
    end = _for(moved, "ends", "end")
    return (
        f"the line search does not see this decay: it compares plain losses, and {_named(moved)} "
        f"{end} at another point; add wdjax.penalty_value to the loss instead"
    )


def two_decays(facts: Facts) -> str | None:
    """Decay enters the program at two places."""
    twice = _pulled(facts, lambda leaf: leaf.found.places > 1)
    if not twice:
        return None
    decays = _for(twice, "decays", "decay")
    return (
        f"{_named(twice)} {decays} at {twice[0].found.places} places of one chain; set "
        "weight_decay=0 in all but one of them (optax.adamw, lion, adamaxw and others decay by "
        "default)"
    )


def flips_signs(facts: Facts) -> str | None:
    """A step takes off all, or goes past the point to which it pulls."""
    off = _pulled(facts, lambda leaf: max(leaf.found.shrink or 0.0, leaf.found.taken) >= 1)
    if off:
        return f"one step takes off all of {_named(off)} or more; lower the strength"
    past = _pulled(facts, lambda leaf: leaf.found.way > 1.01)
    if past:
        it, pulls = _for(past, "it", "them"), f"one step moves {_named(past)} past the point"
        return f"{pulls} to which the penalty pulls {it}; lower the strength"
    return None


def far_too_strong(facts: Facts) -> str | None:
    """Less than 1% is left after 1% of the run."""
    if facts.steps is None or facts.steps < 100:
        return None
    strong = _which(facts, lambda leaf: _after_a_hundredth(leaf.found, facts.steps or 0) < 0.01)
    if not strong:
        return None
    return (
        f"decay is far too strong: without gradients less than 1% of {_named(strong)} is left "
        "after 1% of the run; is λ given where a fraction per step is meant?"
    )


def _after_a_hundredth(found: Finding, steps: int) -> float:
    """What is left after the first hundredth of the run."""
    counts, curve = np.asarray(found.counts), np.asarray(found.curve)
    if found.shrink is None or not 0 < found.shrink < 1 or not len(counts):
        return 1.0
    first = curve[counts <= steps / 100]
    return math.exp(steps / 100 * float(np.log1p(-np.minimum(first, 1 - 1e-9)).mean()))


def guessed(facts: Facts) -> str | None:
    """A guess by shape that decays."""
    unsure = _which(facts, lambda leaf: leaf.guess and not facts.given and leaf.multiplier > 0)
    if not unsure:
        return None
    decays = _for(unsure, "decays because of its shape", "decay because of their shapes")
    return (
        f"{_named(unsure)} {decays} only: no name says what {_for(unsure, 'it is', 'they are')}; "
        f'write a rule, such as (("{unsure[0].path}", 1.0), *wdjax.standard())'
    )


VERDICTS = (
    nothing_decays,
    weights_grow,
    repeats,
    frozen_decay,
    unreached_decay,
    skipped_decay,
    swallowed,
    against_rules,
    missed_by_rules,
    unseen_by_search,
    two_decays,
    flips_signs,
    far_too_strong,
    guessed,
)


def warnings(facts: Facts) -> tuple[str, ...]:
    """Return a sentence for everything that is certainly wrong."""
    found = (verdict(facts) for verdict in VERDICTS)
    return tuple(sentence for sentence in found if sentence is not None)


def notes(facts: Facts) -> tuple[str, ...]:
    """Return a sentence for everything that was not measured, and why."""
    reasons: dict[str, list[Leaf]] = {}
    for leaf in facts.leaves:
        if leaf.found.why:
            reasons.setdefault(leaf.found.why, []).append(leaf)
    return tuple(f"{_named(leaves)}: {why}" for why, leaves in reasons.items())
