"""The experiments run at tiny size, and what is known in advance comes out."""

import json

import numpy as np
import pytest
import script_files

import wdjax


@pytest.fixture(scope="module", name="script")
def _script():
    return script_files.load("experiments")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cautious", "corrected"])
def test_it_runs_and_draws_its_figure(name, script, tmp_path, capsys):
    if name == "corrected":
        pytest.importorskip("sklearn")
    script.main([name, "--smoke", "--out", str(tmp_path)])
    assert "λ tuned over the same grid" in capsys.readouterr().out
    assert json.loads((tmp_path / f"{name}.json").read_text())["best"]
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_plain_decay_moves_the_optimum_and_cautious_decay_does_not(script):
    for row in script.quadratic(500, (0.3, 1.0)):
        for start in (0, 4):
            assert np.isclose(row[f"none from {start}"], 2, rtol=1e-5)
            assert np.isclose(row[f"cautious from {start}"], 2, rtol=1e-5)
            assert np.isclose(row[f"plain from {start}"], 2 / (1 + row["λ"]), rtol=1e-5)
        assert np.isclose(row["Σs"], 500 * 0.1 * row["λ"])


def test_each_leaf_decays_with_its_own_weight_decay(script):
    """A loss without a gradient: what is left is Π (1 − η λ)."""
    ends = script.settle(
        "plain",
        (0.5, 1.0),
        lambda x, data: (0.0 * x).sum(),
        np.ones(2, np.float32),
        np.ones((3, 1)),
        0.1,
        7,
    )
    assert np.allclose(ends[0], 0.95**7)
    assert np.allclose(ends[1], 0.9**7)


def test_the_two_laws_start_alike_and_differ_by_a_third_of_the_budget(script):
    rate = wdjax.linear_ramp(script.PEAK, 0.0, 6_000)
    budgets = [wdjax.decay_budget(law(0.1, rate), 6_000) for law in script.LAWS.values()]
    assert np.isclose(budgets[0], 3.0, rtol=1e-3)
    assert np.isclose(budgets[1], 2.0, rtol=1e-3)
    assert all(np.isclose(law(0.1, rate)(0), 0.1 * script.PEAK) for law in script.LAWS.values())


def test_the_layers_before_a_norm_are_scale_invariant(script):
    """So that they are the ones on which the corrected law may act."""
    params = script.start(0, 16)
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    for name in ("hidden_0", "hidden_1"):
        other = params | {name: {"kernel": 3 * params[name]["kernel"]}}
        assert np.allclose(script.logits(params, x), script.logits(other, x), atol=1e-4)


def test_an_unknown_experiment_is_an_error(script, capsys):
    with pytest.raises(SystemExit) as error:
        script.main(["bogus"])
    assert error.value.code == 2
    assert "unknown experiments ['bogus']" in capsys.readouterr().err
