"""Sweeps on executors: other threads, processes and machines, which may be lost."""

import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent import futures
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wdjax import sweeps

CHUNK = 3
DATA = {"x": np.linspace(-1, 1, 24, dtype=np.float32), "y": np.arange(24, dtype=np.float32)}
HPARAMS = sweeps.grid(learning_rate=[0.01, 0.1], weight_decay=[0.0, 0.01, 0.1, 1.0])


def build(h):
    return optax.adamw(h["learning_rate"], weight_decay=h["weight_decay"])


def init(key):
    return {"w": jax.random.normal(key), "b": jnp.zeros(())}


def loss(params, data, weights):
    error = params["w"] * data["x"] + params["b"] - data["y"]
    return jnp.sum(weights * error**2) / jnp.sum(weights)


def swept(executor=None, **options):
    folds = sweeps.kfold(24, 3)
    options = {"epochs": 3, "batch_size": 5, "seeds": 2, "keep_params": True, **options}
    options = {"chunk": CHUNK, "folds": folds, "init": init, "loss": loss} | options
    return sweeps.sweep(options.pop("build", build), HPARAMS, DATA, executor=executor, **options)


@pytest.fixture(scope="module")
def alone():
    return swept()


def same(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, tuple(got), tuple(wanted))


class Engine(futures.Executor):
    """Runs tasks at once, and the first workers that it gives a chunk to are lost."""

    def __init__(self, losses, error=futures.BrokenExecutor):
        self.losses, self.error, self.tasks = losses, error, []

    def submit(self, task, hparams):
        future = futures.Future()
        self.tasks.append(np.asarray(hparams["weight_decay"]).tolist())
        if self.tasks.count(self.tasks[-1]) <= self.losses:
            future.set_exception(self.error("gone"))
        else:
            try:
                future.set_result(task(hparams))
            except ArithmeticError as error:
                future.set_exception(error)
        return future


def test_threads_give_the_same_bits_with_a_folder_and_a_count(alone, tmp_path):
    with futures.ThreadPoolExecutor(2) as pool:
        same(swept(pool, folder=tmp_path), alone)
    pieces = sorted(path.name for path in tmp_path.glob("rows-*"))
    assert len(pieces) == 3
    (tmp_path / pieces[1]).unlink()
    engine = Engine(0)
    same(swept(engine, folder=tmp_path), alone)
    assert len(engine.tasks) == 1  # what was there is not trained again


def test_an_eighth_of_the_configurations_is_a_task():
    engine = Engine(0)
    swept(engine, chunk=None)
    assert len(engine.tasks) == 8


@pytest.mark.parametrize("error", [futures.BrokenExecutor, futures.CancelledError, EOFError])
def test_what_a_lost_worker_had_is_trained_again_and_counted_once(error, alone, tmp_path):
    engine = Engine(2, error)
    same(swept(engine, folder=tmp_path), alone)
    assert len(engine.tasks) == 9
    assert len(list(tmp_path.glob("rows-*"))) == 3


def test_a_chunk_that_loses_every_worker_is_named():
    with pytest.raises(RuntimeError, match=r"Configurations \d to \d were given to 3 workers"):
        swept(Engine(3))


def test_an_error_of_the_work_is_the_users_own(tmp_path):
    class Fails(Engine):
        def submit(self, task, hparams):
            if len(self.tasks) == 1:
                task = lambda hparams: 1 / 0
            return super().submit(task, hparams)

    with pytest.raises(ZeroDivisionError) as caught:
        swept(Fails(0), folder=tmp_path)
    assert "configurations" in caught.value.__notes__[0]
    swept(folder=tmp_path)  # goes on


def test_wrong_executors_are_refused():
    pool = futures.ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(ValueError, match="`executor` must accept work; got ThreadPoolExecutor"):
        swept(pool)
    with pytest.raises(TypeError, match="`executor` must have `submit`"):
        swept(2)
    forks = futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    with pytest.raises(ValueError, match="spawn its processes"):
        swept(forks)
    with pytest.raises(ValueError, match="`devices` must be None beside `executor`"):
        swept(Engine(0), devices=jax.devices())


def test_functions_that_cannot_travel_are_named(monkeypatch):
    lock = threading.Lock()

    def locked(params, data, weights):
        with lock:
            return loss(params, data, weights)

    with pytest.raises(TypeError, match="`loss` and `metric` must be able to travel"):
        swept(Engine(0), loss=locked)
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(TypeError, match="install cloudpickle"):
        swept(Engine(0), build=lambda h: build(h))


def test_workers_compute_in_the_widths_of_this_process(x64):
    with futures.ThreadPoolExecutor(1) as pool:
        assert swept(pool).val.dtype == np.float64


@pytest.mark.slow  # processes that import JAX
def test_processes_give_the_same_bits(alone):
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        same(swept(pool), alone)


@pytest.mark.parametrize("name", ["Ray", "Slurm"])
def test_the_adapters_of_the_page_give_the_same_bits(alone, name, monkeypatch):
    page = pathlib.Path(__file__).parents[1] / "docs/clusters.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if "class Ray" in block)
    with futures.ThreadPoolExecutor(2) as cluster:

        def remote(function):  # what Ray's own decorator gives, as far as the page uses it
            return SimpleNamespace(
                remote=lambda *args: SimpleNamespace(future=lambda: cluster.submit(function, *args))
            )

        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(remote=remote))
        exec(block, names := {})  # the page is ours
        executor = names["Ray"]() if name == "Ray" else names["Slurm"](cluster)
        same(swept(executor), alone)


@pytest.mark.slow
def test_closures_travel_to_processes(alone):
    pytest.importorskip("cloudpickle", reason="pip install -e '.[cluster]'")
    scale = 1.0
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        got = swept(pool, loss=lambda *args: scale * loss(*args))
    np.testing.assert_allclose(got.val, alone.val, rtol=1e-6)


@pytest.mark.slow
def test_a_broken_pool_says_so_and_its_folder_goes_on(alone, tmp_path):
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(os.getpid).result()
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(ValueError, match="continues where this one stopped"):
            swept(pool, folder=tmp_path)
    same(swept(folder=tmp_path), alone)


@pytest.mark.slow
def test_dask_goes_on_when_a_worker_started_by_hand_is_killed(alone):
    distributed = pytest.importorskip("distributed", reason="pip install -e '.[cluster]'")
    scheduler = distributed.LocalCluster(
        n_workers=0, processes=False, dashboard_address=None, protocol="tcp", host="127.0.0.1"
    )
    path = os.pathsep.join([os.path.dirname(__file__), os.getcwd()])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler.scheduler_address]
    command += ["--nthreads", "1", "--no-dashboard", "--no-nanny"]
    workers = [
        subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(2)
    ]
    try:
        with distributed.Client(scheduler) as client:
            client.wait_for_workers(2, timeout=120)

            def kill():
                while not any(client.processing().values()):
                    time.sleep(0.01)
                workers[0].kill()

            killer = threading.Thread(target=kill)
            killer.start()
            got = swept(client.get_executor(), chunk=1, seeds=2)
            killer.join()
            assert workers[0].wait(10) != 0
        wanted = swept(chunk=1)
        same(got, wanted)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        scheduler.close()
