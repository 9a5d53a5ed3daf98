"""The comparison of learning λ with searching for it runs, at tiny size."""

import json

import numpy as np
import pytest
import script_files


@pytest.fixture(scope="module", name="script")
def _script():
    pytest.importorskip("sklearn")
    return script_files.load("tuning")


@pytest.mark.slow  # it compiles eight searches and runs
def test_it_runs_and_draws_its_figure(script, tmp_path, capsys):
    script.main(["--smoke", "--out", str(tmp_path)])
    assert "random search, 16" in capsys.readouterr().out
    rows = json.loads((tmp_path / "tuning.json").read_text())["rows"]
    assert all(np.isfinite(row["test loss"]) and row["cost in runs"] > 0 for row in rows)
    assert (tmp_path / "tuning.png").read_bytes().startswith(b"\x89PNG")


def test_the_three_parts_share_no_example_and_the_noise_is_noise(script):
    parts = script.split(0)
    assert [len(part["y"]) for part in parts] == [150, 300, 1347]
    rows = np.concatenate([part["noise"] for part in parts])
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert abs(rows.mean()) < 0.01


def test_what_is_given_is_what_each_group_decays_by(script):
    """With λ = 0 for two groups and a large one for the third, only the third shrinks."""
    parts, params = script.split(0), script.start(0)
    rules = (*((f"{g}/kernel", lam) for g, lam in zip(script.GROUPS, (0, 2, 0), strict=True)),
             ("bias", 0.0))  # fmt: skip
    decay = script.wdjax.decay_weights(0.02, rules=rules)
    ends = [script.trained(d, parts, params, 20)[0] for d in (decay, script.optax.identity())]
    ratio = {g: float(np.linalg.norm(ends[0][g]["kernel"]) / np.linalg.norm(ends[1][g]["kernel"]))
             for g in script.GROUPS}  # fmt: skip
    assert ratio["noise"] == pytest.approx(0.96**20, rel=0.1)
    assert min(ratio["pixels"], ratio["output"]) > 0.9
