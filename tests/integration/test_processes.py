"""Two processes that share one mesh train as one does, and a death in the middle costs nothing."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import process_worker as worker
import pytest
from once import once

FLAGS = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2 "
    "--xla_backend_optimization_level=0"
)
PATIENCE = 400  # seconds; a process that waits for a dead one would wait for longer


@contextlib.contextmanager
def two_processes(job, folder):
    """Both of them, at a port that was free a moment ago; none is left behind."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    folder.mkdir(exist_ok=True)
    pair = []
    with contextlib.ExitStack() as stack:
        try:
            for rank in range(2):
                log = stack.enter_context((folder / f"log-{rank}").open("a"))
                command = [sys.executable, worker.__file__, job, str(rank), str(port), str(folder)]
                pipes = {"stdout": subprocess.PIPE, "stderr": log, "text": True, "env": env}
                pair.append(stack.enter_context(subprocess.Popen(command, **pipes)))
            yield pair
        finally:
            for process in pair:
                process.kill()


def outputs(job, folder):
    """What each process said of its checkpoints, as words, and its results."""
    printed = []
    with two_processes(job, folder) as pair:
        for rank, process in enumerate(pair):
            lines = process.communicate(timeout=PATIENCE)[0].splitlines()
            assert process.returncode == 0, (folder / f"log-{rank}").read_text()[-2_000:]
            printed.append(lines)
    words = [[line.split() for line in lines if line[:4] in ("from", "save")] for lines in printed]
    return words, [json.loads(lines[-1]) for lines in printed]


@pytest.fixture(scope="module", name="results")
def _results(tmp_path_factory):
    return once(tmp_path_factory, "processes", lambda folder: outputs("check", folder)[1])


@pytest.fixture(scope="module", name="alone")
def _alone():
    """The same steps by one process with one device: its parameters and losses."""
    with jax.enable_x64(True):
        state, step, losses = worker.start(None), worker.make_step(), []
        for t in range(worker.STEPS):
            state, metrics = step(state, worker.batch_of(t))
            losses.append(float(metrics["loss"]))
        return worker.gathered(state), losses


def close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.slow  # two fresh processes
@pytest.mark.parametrize("what", ["data-parallel", "fully sharded"])
def test_two_processes_take_the_steps_of_one(what, results, alone):
    for found in results:
        close(found[what], alone[0])
        assert found[f"{what}, loss"] == pytest.approx(alone[1][-1], rel=1e-9)
        assert found[f"{what}, compiled again"] == 0


@pytest.mark.slow  # two fresh processes
def test_fit_reads_batches_of_which_each_process_has_a_part(results, alone):
    for found in results:
        close(found["fit, an iterator"], alone[0])
        np.testing.assert_allclose(found["fit, losses"], alone[1], rtol=1e-9)


@pytest.mark.slow  # two fresh processes
def test_fit_cuts_batches_from_examples_of_which_each_process_has_a_part(results, x64):
    mesh = worker.shared.mesh_of(worker.shared.AUTO, x=1)
    wanted = worker.gathered(worker.uninterrupted(mesh)[0])
    for found in results:
        close(found["fit, examples in parts"], wanted)


@pytest.mark.slow  # two fresh processes
@pytest.mark.parametrize("source", ["in memory", "an iterator"])
def test_fit_refuses_batches_that_each_process_has_for_itself(source, results):
    for found in results:
        message = found[f"error, {source}"]
        assert "`batches` must lie on the devices of all processes" in message
        assert "'x', 'y'" in message


@pytest.mark.slow  # two fresh processes
def test_a_state_has_one_key_and_not_one_in_each_process(results):
    for found in results:
        assert "not the same" in found["error, keys"]


@pytest.mark.slow  # two fresh processes
def test_two_processes_share_a_sweep_by_its_rows(results, x64):
    wanted = worker.sweep({"weight_decay": np.array(worker.LAMBDAS)})
    by_rows = np.reshape(wanted, (len(worker.LAMBDAS), -1))
    for rank, found in enumerate(results):
        np.testing.assert_allclose(found["sweep"], by_rows[rank::2].ravel(), rtol=1e-9)
        assert "`devices` must belong to this process, at least one of" in found["error, sweep"]


def run_until_death(folder, victim, after):
    """Kill one process once it has saved that step; the other must not be left waiting."""
    with two_processes("resume", folder) as pair:
        for line in pair[victim].stdout:
            if line.split() == ["saved", str(after)]:
                break
        pair[victim].send_signal(signal.SIGKILL)
        assert pair[victim].wait(PATIENCE) == -signal.SIGKILL
        with contextlib.suppress(subprocess.TimeoutExpired):
            pair[1 - victim].wait(1)  # it fails by itself, or is killed in the end


@pytest.mark.slow  # two pairs of fresh processes, one after the other
def test_a_killed_process_loses_nothing_that_was_saved(results, tmp_path):
    pytest.importorskip("orbax.checkpoint")
    steps = worker.EPOCHS * worker.shared.ROWS // worker.BATCH
    run_until_death(tmp_path / "run", victim=0, after=14)  # the one that the other looks to
    printed, found = outputs("resume", tmp_path / "run")
    for lines, result in zip(printed, found, strict=True):
        assert lines[0][0] == "from"
        assert 14 <= int(lines[0][1]) <= 18, "a checkpoint that was said to be saved is gone"
        assert lines[-1] == ["saved", str(steps)]
        assert result["params"] == results[0]["fit, examples in parts"], "not the same bits"
