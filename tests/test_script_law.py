"""The experiment on the law of λ: its text, its model, its report, and the data that it left."""

import json
import pathlib

import jax
import numpy as np
import pytest
import script_files

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module", name="script")
def _script():
    return script_files.load("law")


def shape(script, width, batch, characters, best):
    """A row whose scores are lowest where the timescale is a given share of the run."""
    steps = script.EPOCHS * characters // (script.CONTEXT * batch)
    lams = 1 / (script.RATE * script.SHARES * steps)
    score = np.log(script.SHARES / best)[:, None] ** 2 + np.zeros(2)
    return {"width": width, "batch": batch, "characters": characters, "steps": steps,
            "weight_decay": lams.tolist(), "validation": score.tolist(),
            "train": score.tolist()}  # fmt: skip


def test_the_rows_are_the_text_in_order_and_none_is_in_both_parts(script):
    rows, folds = script.parts(4_096)
    assert folds.train.shape == (1, 128)
    assert folds.val.shape == (1, script.HELD_OUT // script.CONTEXT)
    assert not set(folds.train[0]) & set(folds.val[0])
    assert np.array_equal(rows[1:128, 0], rows[:127, -1])  # each begins where the last one ended
    text = script.text()
    assert np.array_equal(rows[128:], text[: len(rows) - 128])


@pytest.mark.slow  # compiles the model, as do the others
def test_no_position_sees_what_comes_after_it(script):

    @jax.jit
    def out(x):
        params = script.init(jax.random.key(0), 16)
        return script.block(x, jax.tree.map(lambda leaf: leaf[0], params["blocks"]))[0]

    x = np.random.default_rng(0).normal(size=(2, 8, 16)).astype(np.float32)
    other = np.concatenate([x[:, :5], -x[:, 5:]], axis=1)
    before, after = np.asarray(out(x)), np.asarray(out(other))
    assert np.array_equal(before[:, :5], after[:, :5])
    assert not np.allclose(before[:, 5:], after[:, 5:])


@pytest.mark.slow
def test_a_score_is_the_loss_of_all_rows(script):
    rows, weights = script.text()[:128], np.arange(128) % 3

    @jax.jit
    def both():
        params = script.init(jax.random.key(0), 16)
        return script.score(params, rows, weights), script.loss(params, rows, weights)

    one, other = map(float, both())
    assert one == pytest.approx(other, rel=1e-5)
    assert 4 < one < 6.5  # about ln 100 before training


def test_a_constant_timescale_is_found_and_its_rule_costs_nothing(script):
    rows = [
        shape(script, *sizes, best=1.0)
        for sizes in ((16, 2, 8192), (32, 2, 8192), (16, 8, 8192), (16, 2, 32768), (32, 8, 32768),
                      (32, 4, 16384))
    ]  # fmt: skip
    law = script.scaling.fit_law(script.results(rows))
    assert law.exponents == pytest.approx(script.CONSTANT, abs=1e-6)
    assert script.shares(law) == pytest.approx(np.ones(6))
    costs = {name: script.excess(rows, rule) for name, rule in script.rules(rows).items()}
    assert costs["one share of the run"] == {"mean": 0.0, "most": 0.0}
    assert costs["the law of the other shapes"] == {"mean": 0.0, "most": 0.0}
    assert costs["one λ for all"]["mean"] > 0.1


def test_what_a_rule_costs_is_read_at_the_nearest_weight_decay(script):
    row = shape(script, 16, 2, 8192, best=1.0)
    twice = lambda r: 2.1 / (script.RATE * r["steps"])
    assert script.excess([row], twice)["mean"] == pytest.approx(np.log(2) ** 2)


def test_a_file_of_other_settings_is_refused(script, tmp_path):
    file = tmp_path / "law.json"
    file.write_text(json.dumps({"settings": {}, "sweeps": []}))
    with pytest.raises(SystemExit, match="other settings"):
        script.run(file, [(16, 8, 2_048)], script.SHARES)


def test_the_kept_sweeps_are_reported_and_drawn(script, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    kept = json.loads((ROOT / "figures" / "law.json").read_text(encoding="utf-8"))
    for row in kept["sweeps"]:
        assert row["steps"] == script.EPOCHS * row["characters"] / (script.CONTEXT * row["batch"])
        assert np.shape(row["validation"]) == (len(script.SHARES), script.SEEDS)
        share = 1 / (script.RATE * np.array(row["weight_decay"]) * row["steps"])
        assert share == pytest.approx(script.SHARES)
    script.report(kept["sweeps"], tmp_path)
    assert "one share of the run" in capsys.readouterr().out
    assert (tmp_path / "law.png").read_bytes().startswith(b"\x89PNG")


def test_the_notebook_shows_the_kept_losses():
    """It runs without the repository, so it has a copy."""
    kept = json.loads((ROOT / "figures" / "law.json").read_text(encoding="utf-8"))["sweeps"]
    notebook = (ROOT / "notebooks" / "8_lambda_at_scale.ipynb").read_text(encoding="utf-8")
    cells = ["".join(cell["source"]) for cell in json.loads(notebook)["cells"]]
    (source,) = [text for text in cells if 'LOSSES = """' in text]
    lines = source.split('"""')[1].strip().splitlines()
    shown = [[int(number) for number in line.split()] for line in lines]
    names = ("width", "batch", "characters")
    wanted = [
        [*(row[name] for name in names), *np.round((np.ravel(row["validation"]) - 2) * 1e4)]
        for row in kept
    ]
    assert shown == wanted


@pytest.mark.slow
def test_a_sweep_is_trained_once_and_kept(script, tmp_path, capsys):
    script.main(["--smoke", "--out", str(tmp_path)])
    script.main(["--smoke", "--out", str(tmp_path)])
    assert capsys.readouterr().out.count("width, batch, characters") == 1
    (row,) = json.loads((tmp_path / "law.json").read_text(encoding="utf-8"))["sweeps"]
    assert np.shape(row["validation"]) == (2, 2)
    assert np.max(row["validation"]) < np.log(104)
