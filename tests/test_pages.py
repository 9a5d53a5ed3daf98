"""The README and the written pages run and print what they show; the conventions are true."""

import importlib.util
import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LIBRARIES = ("flax", "haiku", "equinox")


def imported(code):
    """Those of LIBRARIES that code imports; they are extras."""
    return {name for name in LIBRARIES if re.search(rf"^(import|from) {name}\b", code, re.M)}


def stripped(text):
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_run_in_order_and_print_what_the_page_shows(page, capsys, monkeypatch):
    """The blocks of a page share their names, as cells of a notebook do."""
    # it takes part in the tests of workers only; here a page may define what it decorates
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(remote=lambda function: function))
    text, names, missing, printed = page.read_text(encoding="utf-8"), {}, set(), None
    for block in BLOCK.finditer(text):
        kind, content = block.groups()
        if kind == "text":
            assert stripped(printed) == stripped(content)
            continue
        absent = {name for name in imported(content) if importlib.util.find_spec(name) is None}
        missing |= absent
        if absent:
            continue
        above = text[: block.start(2)].count("\n")  # so that errors name the line of the page
        exec(compile("\n" * above + content, str(page), "exec"), names)
        printed = capsys.readouterr().out
    if missing:
        pytest.skip(f"the other blocks ran; these need {missing}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_one_that_the_test_above_runs_or_compares(page):
    text = page.read_text(encoding="utf-8")
    assert len(BLOCK.findall(text)) * 2 == len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE))


def test_a_block_for_every_library_is_on_the_page_of_loops():
    assert imported((ROOT / "docs/where.md").read_text(encoding="utf-8")) == set(LIBRARIES)


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


N, D, LAM = 30, 4, 0.3
ROWS = {
    # objective of (r, w), data part trained on, coefficient of add_decayed_weights, ridge term
    "mean, λ/2": (lambda r, w: r / N + LAM / 2 * w, lambda r: r / N, LAM, N * LAM / 2),
    "mean, λ": (lambda r, w: r / N + LAM * w, lambda r: r / N, 2 * LAM, N * LAM),
    "half mean, λ/2": (lambda r, w: r / (2 * N) + LAM / 2 * w, lambda r: r / (2 * N), LAM, N * LAM),
    "half mean, λ": (
        lambda r, w: r / (2 * N) + LAM * w,
        lambda r: r / (2 * N),
        2 * LAM,
        2 * N * LAM,
    ),
    "half mean, λ/2n": (
        lambda r, w: r / (2 * N) + LAM / (2 * N) * w,
        lambda r: r / (2 * N),
        LAM / N,
        LAM,
    ),
    "scikit-learn": (lambda r, w: (r + LAM * w) / N, lambda r: r / N, 2 * LAM / N, LAM),
}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_each_convention_maps_as_the_table_says(row, x64):
    objective, data_part, coefficient, ridge = ROWS[row]
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(N, D)), rng.normal(size=N), rng.normal(size=D)
    tx = wdjax.add_decayed_weights(coefficient)

    def whole(v):
        return objective(jnp.sum((x @ v - y) ** 2), jnp.sum(v**2))

    @jax.jit
    def fed(v):
        grads = jax.grad(lambda v: data_part(jnp.sum((x @ v - y) ** 2)))(v)
        return tx.update({"w": grads}, tx.init({"w": v}), {"w": v})[0]["w"], jax.grad(whole)(v)

    # the gradient of the whole objective is what the chain feeds the optimizer
    np.testing.assert_allclose(*fed(w), rtol=1e-12)
    # and its minimizer is the ridge solution of the third column
    exact = np.linalg.solve(x.T @ x + ridge * np.eye(D), x.T @ y)
    assert np.allclose(fed(exact)[1], 0, atol=1e-12)


def test_the_lasso_row_meets_scikit_learn(x64):
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(N, D)), rng.normal(size=N)
    tx = optax.chain(
        optax.sgd(0.05), wdjax.prox_weights(wdjax.lr_scaled(0.1, 0.05), wdjax.penalties.l1)
    )
    loss = lambda p: jnp.sum((jnp.asarray(x) @ p["kernel"] - y) ** 2) / (2 * N)

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"kernel": np.zeros(D)}
    (params, _), _ = jax.lax.scan(body, (params, tx.init(params)), length=5_000)
    lasso = linear_model.Lasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(
        x, y
    )
    assert np.allclose(params["kernel"], lasso.coef_, atol=1e-8)
    assert ((params["kernel"] == 0) == (lasso.coef_ == 0)).all()
