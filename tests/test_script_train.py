"""The training script: options, printed numbers, figures, exit codes; no golden numbers."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import script_files

SCRIPT = pathlib.Path(__file__).parents[1] / "scripts" / "train.py"
RUNS = {
    "linear": ["--optimizer", "momentum", "--gamma", "0.1", "--coupled"],
    "diabetes": ["--penalty", "l1", "--implicit", "--weight-decay", "0.1"],
    "digits": ["--law", "schedule_scaled", "--batch-size", "512"],
}


@pytest.fixture(scope="module", name="script")
def _script():
    return script_files.load("train")


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_an_unknown_option_ends_the_program_with_exit_code_2():
    command = [sys.executable, str(SCRIPT), "--data", "linear", "--weight-decai", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unrecognized arguments: --weight-decai" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mnist"], "invalid choice: 'mnist'"),
        (["--data", "linear", "--epoch", "3"], "unrecognized arguments: --epoch"),
        (["--seed", "-1"], "must be a whole number >= 0; got -1"),
        (["--seed", "one"], "must be a whole number >= 0; got one"),
        (["--data", "linear", "--epochs", "0"], "must be a whole number >= 1; got 0"),
        (["--data", "linear", "--weight-decay", "-1"], "must be a finite number >= 0; got -1"),
        (["--data", "linear", "--learning-rate", "nan"], "must be a finite number >= 0; got nan"),
        (["--data", "linear", "--implicit", "--coupled"], "not allowed with argument --implicit"),
        (["--data", "linear", "--coupled", "--law", "fixed"], "--law has no meaning with"),
        (["--data", "linear", "--penalty", "none", "--coupled"], "--penalty none has no decay"),
        (["--data", "linear", "--penalty", "none", "--law", "fixed"], "no decay: drop --law"),
        (["--data", "linear", "--batch-size", "999"], "--batch-size must be at most "),
        (["--out", __file__], "must be a folder that can be written; "),
        (["--out", f"{__file__}/deeper"], "test_script_train.py/deeper: Not a directory"),
        (["--optimizer", "adam", "--gamma", "1"], r"--optimizer, --gamma need --data"),
    ],
)
def test_contradicting_options_say_what_is_wrong(script, arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        script.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ([], "it reaches 2 for 'kernel' and would flip signs"),
        (["--coupled"], "takes off 2 of a we"),
    ],
)
def test_a_decay_that_flips_signs_is_refused_before_training(
    script, tmp_path, capsys, place, message
):
    arguments = ["--data", "linear", "--weight-decay", "20", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        script.main([*arguments, *place])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("data", RUNS)
def test_a_short_run_writes_a_figure_and_every_printed_metric(script, data, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    arguments = ["--data", data, "--epochs", "3", "--no-progress", "--out", str(out)]
    assert script.main(arguments + RUNS[data]) == 0
    assert is_png(out / f"{data}.png")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["ok"] is True
    job = metrics[data]
    (label,) = job["audits"]
    assert {row["path"] for row in job["audits"][label]["rows"]} >= {
        "kernel",
        "bias",
    } or data == "digits"
    assert {*job["runs"]} == {"none", label}
    assert job["runs"].keys() >= {"none"}
    printed = capsys.readouterr().out
    for numbers in job["runs"].values():
        assert {"train loss", "test loss", "weight norm", "exact zeros"} <= numbers.keys()
        for value in numbers.values():
            assert np.isfinite(value)
            assert f"{value:.5g}" in printed


def test_without_a_penalty_there_is_one_run_and_no_audit(script, tmp_path):
    arguments = ["--data", "linear", "--penalty", "none", "--epochs", "2", "--out", str(tmp_path)]
    assert script.main(arguments) == 0
    job = json.loads((tmp_path / "metrics.json").read_text())["linear"]
    assert list(job["runs"]) == ["none"]
    assert "audits" not in job


def test_the_undecayed_run_of_lion_has_no_decay_of_its_own(script, tmp_path):
    common = ["--data", "linear", "--optimizer", "lion", "--epochs", "2", "--out", str(tmp_path)]
    assert script.main([*common, "--weight-decay", "0"]) == 0
    runs = json.loads((tmp_path / "metrics.json").read_text())["linear"]["runs"]
    assert runs["none"] == runs["l2, explicit"]


@pytest.mark.parametrize(
    ("optimizer", "law"),
    [
        ("adagrad", "lr_scaled"),
        ("adabelief", "schedule_scaled"),
        ("rmsprop", "fixed"),
        ("lamb", "corrected"),
        ("muon", "lr_squared"),
    ],
)
@pytest.mark.slow
def test_every_optimizer_and_law_runs_and_shrinks_the_weights(script, optimizer, law, tmp_path):
    arguments = ["--data", "diabetes", "--optimizer", optimizer, "--law", law, "--gamma", "0.01"]
    assert script.main([*arguments, "--epochs", "20", "--out", str(tmp_path)]) == 0
    runs = json.loads((tmp_path / "metrics.json").read_text())["diabetes"]["runs"]
    assert runs["l2, explicit"]["weight norm"] < runs["none"]["weight norm"]


def test_ridge_minimizes_the_stated_objective(script):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(30, 4)), generator.normal(size=30)
    w, b = script.ridge({"x": x, "y": y}, 0.3)
    residual = x @ w + b - y
    # both derivatives of 1/(2n) Σ r² + λ/2 ‖w‖² vanish
    np.testing.assert_allclose(x.T @ residual / 30 + 0.3 * w, 0.0, atol=1e-12)
    np.testing.assert_allclose(residual.mean(), 0.0, atol=1e-12)


def test_a_failed_check_is_called_bad_and_ends_with_exit_code_1(
    script, tmp_path, capsys, monkeypatch
):
    linear_job, passing = script.linear_job, script.Report("nothing to check")
    monkeypatch.setattr(script, "linear_job", lambda *given: linear_job(*given, epochs=5))
    monkeypatch.setattr(script, "diabetes_job", lambda *given: passing)
    monkeypatch.setattr(script, "digits_job", lambda *given: passing)
    assert script.main(["--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "(> 0.0001: BAD)" in printed
    assert "BAD: a check failed" in printed
    assert json.loads((tmp_path / "metrics.json").read_text())["ok"] is False


def test_a_run_that_is_not_finite_fails_a_check_and_leaves_valid_json(script, tmp_path):
    arguments = ["--data", "linear", "--epochs", "1", "--penalty", "none", "--out", str(tmp_path)]
    with pytest.warns(UserWarning, match="`fit` skipped"):
        assert script.main([*arguments, "--learning-rate", "1e20"]) == 1
    refuse = lambda constant: pytest.fail(f"{constant} is not JSON")
    metrics = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert metrics["ok"] is False
    assert metrics["linear"]["runs"]["none"]["train loss"] is None
    assert metrics["linear"]["checks"]["numbers that are not finite"]["value"] >= 1


@pytest.mark.parametrize(
    ("options", "acts", "shrink"),
    [
        (["--weight-decay", "2"], "weights", 0.2),
        (["--weight-decay", "2", "--coupled"], "weights", 0.2),
        (["--weight-decay", "20", "--implicit"], "weights", 2 / 3),  # 1 / (1 + 2) is left
        (["--weight-decay", "20", "--penalty", "l1"], "constant", None),
        (["--weight-decay", "1000", "--coupled", "--optimizer", "adam"], "gradient", None),
    ],
)
@pytest.mark.first_is_quick
def test_the_audit_is_of_the_run_and_not_of_another_method(
    script, tmp_path, monkeypatch, options, acts, shrink
):
    trained = {"none": script.Run(None, [], [], [], {}, {"train loss": 1.0})}
    monkeypatch.setattr(script, "train", lambda *given, **fitting: trained["none"])
    monkeypatch.setattr(script, "draw_curves", lambda *given: None)
    monkeypatch.setattr(script, "draw_weights", lambda *given: None)
    assert script.main(["--data", "linear", *options, "--out", str(tmp_path)]) == 0
    (audit,) = json.loads((tmp_path / "metrics.json").read_text())["linear"]["audits"].values()
    rows = {row["path"]: row for row in audit["rows"]}
    assert rows["bias"]["acts"] == "none"
    assert rows["kernel"]["acts"] == acts
    assert rows["kernel"]["shrink"] == (None if shrink is None else pytest.approx(shrink))


@pytest.mark.slow
def test_the_demo_runs_whole_and_all_checks_pass(tmp_path):
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--no-progress"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["ok"] is True
    assert metrics["linear"]["checks"]["max |w - ridge|"]["value"] <= 1e-4
    assert "(<= 0.0001: ok)" in done.stdout
    for data in ("linear", "diabetes", "digits"):
        assert is_png(tmp_path / f"{data}.png")
    audits = {
        label: x
        for job in metrics.values()
        if isinstance(job, dict)
        for label, x in job["audits"].items()
    }
    acts = {label: audit["rows"][-1]["acts"] for label, audit in audits.items()}
    assert acts == {
        "L2": "weights",
        "L1": "constant",
        "AdamW": "weights",
        "Adam + L2": "gradient",
        "Adam, L1": "constant",
    }
    assert not any(audit["warnings"] for audit in audits.values())
    runs = metrics["diabetes"]["runs"]
    assert runs["L1"]["exact zeros"] > 0
    assert runs["L2"]["exact zeros"] == runs["none"]["exact zeros"] == 0
    assert metrics["diabetes"]["checks"].keys() >= {"max |L1 - scikit-learn's Lasso|"}
    norms = {label: run["weight norm"] for label, run in metrics["digits"]["runs"].items()}
    assert max(norms["AdamW"], norms["Adam + L2"]) < norms["none"]
