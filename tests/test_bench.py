"""The benchmark suite cannot rot: every part runs at tiny size."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "scripts" / "bench.py"


@pytest.mark.slow
def test_every_benchmark_runs_and_writes_its_figures(tmp_path):
    target = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--smoke", "--json", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(target.read_text())
    kinds = {figure["name"].split(",")[0].split()[0] for figure in figures}
    own = {"step", "fit", "import", "resolve", "metrics", "20", "240", "sweep", "LOO", "5", "lasso"}
    assert own <= kinds  # more, where the peers are
    assert "ours/theirs" in done.stdout


def test_an_unknown_benchmark_is_an_error():
    done = subprocess.run([sys.executable, str(SCRIPT), "bogus"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "invalid choice" in done.stderr
