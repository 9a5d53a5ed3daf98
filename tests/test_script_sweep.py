"""The sweep script: options, printed tables, figures, exit codes; no golden numbers."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import script_files

from wdjax import sweeps

SCRIPT = pathlib.Path(__file__).parents[1] / "scripts" / "sweep.py"


@pytest.fixture(scope="module", name="script")
def _script():
    return script_files.load("sweep")


@pytest.fixture(name="small")
def _small(script, monkeypatch):
    """Coarse grids: the shapes of the real jobs in a fraction of their time."""
    for name, make in script.JOBS.items():
        job = make(0)
        axes = {key: np.unique(values) for key, values in job.hparams.items()}
        coarse = {key: values[:: -(-len(values) // 3)] for key, values in axes.items()}
        small = job._replace(hparams=sweeps.grid(**coarse))
        monkeypatch.setitem(script.JOBS, name, lambda seed, small=small: small)


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_an_unknown_option_ends_the_program_with_exit_code_2():
    command = [sys.executable, str(SCRIPT), "--job", "line"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unrecognized arguments: --job" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "mnist"], "invalid choice: 'mnist'"),
        (["--epochs", "0"], "must be a whole number >= 1; got 0"),
        (["--folds", "two"], "must be a whole number >= 2; got two"),
        (["--folds", "1"], "must be a whole number >= 2; got 1"),
        (["--folds", "21"], "--folds must leave two examples in each, so be at most 20 for poly"),
        (["--seed", "-1"], "must be a whole number >= 0; got -1"),
    ],
)
def test_wrong_options_say_what_is_wrong(script, arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        script.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["line", "digits"])
def test_a_job_prints_a_table_and_writes_a_figure_and_its_numbers(
    script, small, name, tmp_path, capsys
):
    out = tmp_path / "new" / "folder"
    options = ["--jobs", name, "--epochs", "2", "--folds", "2", "--no-progress"]
    script.main(["--out", str(out), *options])
    job = json.loads((out / "sweep.json").read_text())[name]
    printed = capsys.readouterr().out
    assert is_png(out / f"sweep-{name}.png")
    means = [row["mean"] for row in job["table"] if row["mean"] is not None]
    assert means == sorted(means)
    assert f"{means[0]:.5g}" in printed
    assert "of them diverged" in printed
    assert job["choices"].keys() == {"min", "1-SE", "paired 1-SE"}
    for choice in job["choices"].values():
        assert np.isfinite(choice["test loss"])
        assert choice["weight_decay"] >= job["choices"]["min"]["weight_decay"]


@pytest.mark.slow
def test_kept_chunks_are_used_again(script, small, tmp_path, monkeypatch, capsys):
    arguments = ["--out", str(tmp_path), "--jobs", "diabetes", "--epochs", "2", "--keep"]
    script.main(arguments)
    first = json.loads((tmp_path / "sweep.json").read_text())["diabetes"]
    assert list((tmp_path / "sweep-diabetes").glob("rows-*.npz"))
    script.main(arguments)
    again = json.loads((tmp_path / "sweep.json").read_text())["diabetes"]
    assert again["table"] == first["table"]
    with pytest.raises(SystemExit) as caught:
        script.main([*arguments, "--folds", "2"])
    assert caught.value.code == 2
    assert "--keep: `folder` must be empty or hold the same sweep" in capsys.readouterr().err


def test_the_exact_scores_are_those_of_ridge(script):
    linear_model = pytest.importorskip("sklearn.linear_model")
    job = script.diabetes(0)
    x, y = job.data.train["x"].astype(np.float64), job.data.train["y"].astype(np.float64)
    folds = sweeps.kfold(len(y), 3)
    found = script.ridge_scores(job, np.array([0.01, 1.0]), folds)
    for score, weight_decay in zip(found, (0.01, 1.0), strict=True):
        losses = []
        for train, used, val, kept in zip(*folds, strict=True):
            train, val = train[used > 0], val[kept > 0]
            model = linear_model.Ridge(alpha=len(train) * weight_decay).fit(x[train], y[train])
            losses.append(0.5 * np.mean((model.predict(x[val]) - y[val]) ** 2))
        np.testing.assert_allclose(score, np.mean(losses), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("ok", [True, False])
def test_a_choice_that_ridge_does_not_confirm_is_called_bad(
    script, small, tmp_path, capsys, monkeypatch, ok
):
    # exact scores of λ that agree with any choice, or only with the largest, which has not won
    fake = lambda job, values, folds: np.where(values < (0 if ok else values.max()), 2.0, 1.0)
    monkeypatch.setattr(script, "ridge_scores", fake)
    arguments = ["--jobs", "polynomial", "--epochs", "1", "--out", str(tmp_path), "--no-progress"]
    assert script.main(arguments) == (0 if ok else 1)
    assert json.loads((tmp_path / "sweep.json").read_text())["ok"] is ok
    printed = capsys.readouterr().out
    assert ("BAD" in printed) is not ok
    own = "its limit is for a job's own epochs and folds, 2000 and 5 of polynomial"
    assert (own in printed) is not ok


@pytest.mark.slow
def test_all_jobs_run_whole_and_all_checks_pass(tmp_path):
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--no-progress"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "sweep.json").read_text())
    assert metrics["ok"] is True
    # where L2 helps: far better than with next to none
    rows = metrics["polynomial"]["table"]
    none = next(row for row in rows if row["weight_decay"] < 2e-4)
    assert rows[0]["mean"] < 0.5 * none["mean"]
    # where it does not, none at all is as good
    rows = metrics["line"]["table"]
    none = next(row["mean"] for row in rows if row["weight_decay"] == 0.0)
    assert none < 1.01 * rows[0]["mean"]
