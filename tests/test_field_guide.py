"""The field guide: every line of wdjax takes off what was measured from the other package."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import script_files

COUPLED = "optax.chain(wdjax.add_decayed_weights(wd), base(lr))"
ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "docs/field_guide.md").read_text(encoding="utf-8")
GUIDE = script_files.load("field_guide/page")
RUNS = script_files.load("field_guide/measure")
MEASURED = GUIDE.load()
NAMES = {}
exec(re.search(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)[1], NAMES)

# The runs of a line in one program: their λ, rates, first weights and gradients.
ZERO = [np.zeros_like(signs) for signs in RUNS.SIGNS]
TWICE = [2 * signs for signs in RUNS.SIGNS]
CASES = {name: (wd, (*rates, rates[-1]), TWICE, [ZERO] * 4) for name, wd, rates in GUIDE.READINGS}
CASES["weights"] = (RUNS.WD, RUNS.RATES, RUNS.START, RUNS.GRADIENTS)


def rows():
    """Every row that has a line, with what was seen of its package."""
    for name, seen in MEASURED.items():
        marks = pytest.mark.slow if name in ("optax", "keras") else ()  # ten seconds to compile
        for row in GUIDE.PACKAGES[name].rows:
            if row.line and row.name in seen["rows"]:
                exact = 1e-9 if seen["dtype"] == "float64" else 3e-6
                case = f"{name}-{row.name}"
                yield pytest.param(row, seen["rows"][row.name], exact, id=case, marks=marks)


@functools.cache
def course(line, parts):
    """Run a line on all cases at once: name -> the weights before the first step and after each."""
    keys = ("kernel", "bias")[:parts]
    tree = lambda arrays: {k: jnp.asarray(x) for k, x in zip(keys, arrays, strict=False)}

    def of_case(wd, rates, start, gradients):
        names = {**NAMES, "wd": wd, "lr": lambda count: rates[count], "peak": rates[0]}
        optimizer = eval(line, names)

        def step(carry, grads):
            params, state = carry
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (start, optimizer.init(start)), gradients)[1]

    stacked = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    decays, rates, starts, gradients = zip(*CASES.values(), strict=True)
    first = stacked([tree(start) for start in starts])
    given = stacked([stacked([tree(grads) for grads in steps]) for steps in gradients])
    run = jax.jit(jax.vmap(of_case))
    after = run(jnp.asarray(decays), jnp.asarray(rates), first, given)
    whole = [np.concatenate([first[k][:, None], after[k]], axis=1) for k in keys]
    return {name: [part[i] for part in whole] for i, name in enumerate(CASES)}


@pytest.mark.parametrize(("row", "seen", "exact"), [*rows()])
@pytest.mark.first_is_quick
def test_a_line_takes_off_what_the_other_package_does(row, seen, exact, x64):
    if row.line == COUPLED:  # what the line says, asked of the package itself
        assert seen["apart"]["coupled"] < GUIDE.SAME
        return
    ours = course(row.line, len(seen["constant"]))
    of_fractions = max(exact, min(row.within, 1e-6))
    for run, *_ in GUIDE.READINGS:
        for part, theirs in zip(ours[run], seen[run], strict=True):
            got = RUNS.fractions(list(part[:4]))
            np.testing.assert_allclose(
                both(got), both(theirs), rtol=0, atol=of_fractions, err_msg=run
            )
    if "base" in row.line:  # the decay alone: before or after the step, as measured
        place = "after" if "implicit" in row.line or "after_step" in row.line else "before"
        is_plain = not ("gate" in row.line or "penalty" in row.line)  # what `apart` supposes
        assert seen["apart"][place] < GUIDE.SAME or not is_plain
    else:  # the whole optimizer: the same weights after given gradients
        for part, theirs in zip(ours["weights"], seen["weights"], strict=True):
            np.testing.assert_allclose(part[-1].ravel(), theirs, atol=row.within or exact, rtol=0)


def both(taken):
    """The smallest and the largest fraction of each step."""
    return np.array([np.broadcast_to(x, 2) for x in taken])


def test_the_page_is_what_the_generator_prints():
    """If this fails: python scripts/field_guide/page.py --write."""
    assert GUIDE.page(MEASURED) == TEXT


def test_every_row_was_run_as_it_is_built_now():
    """A row whose code has changed has to be run again: scripts/field_guide/run.py PACKAGE."""
    for name, package in GUIDE.PACKAGES.items():
        seen = MEASURED[name]
        assert [row.name for row in package.rows] == list(seen["rows"])
        assert [row.code for row in package.rows] == [x["code"] for x in seen["rows"].values()]
        pins = (*package.requires, *package.bare, package.clone)
        assert any(pin.endswith(f"=={seen['version']}") for pin in pins)


def test_every_row_has_either_a_line_or_a_reason():
    for package in GUIDE.PACKAGES.values():
        for row in package.rows:
            assert bool(row.line) != bool(row.why), row.name
