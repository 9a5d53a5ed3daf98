"""What test_processes.py runs: one of two processes that share a mesh of four devices.

python process_worker.py JOB RANK PORT FOLDER
"""

import json
import pathlib
import sys

import device_worker as shared
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import wdjax
from wdjax import sweeps

STEPS, EPOCHS, BATCH = 4, 4, 16
LAMBDAS = [0.0, 0.1, 1.0, 3.0, 10.0]


def start(mesh, *axes):
    params = shared.place(shared.host_model(), mesh, *axes)
    return wdjax.TrainState.create(params, shared.optimizer(), key=jax.random.key(3))


def noisy_loss(params, batch, key):
    noise = 0.01 * jax.random.normal(key, batch["y"].shape, batch["y"].dtype)
    return shared.loss_fn(params, batch | {"y": batch["y"] + noise})


def make_step():
    return wdjax.make_train_step(noisy_loss, shared.optimizer(), max_grad_norm=0.1)


def batch_of(t):
    """The examples of step t."""
    rows = np.random.default_rng(t).integers(shared.ROWS, size=BATCH)
    return jax.tree.map(lambda x: x[rows], shared.host_data())


def from_parts(tree, mesh):
    """Arrays on all devices, of which each process has only its own part on the host."""
    at, count = NamedSharding(mesh, P("x")), jax.process_count()
    own = lambda x: x[jax.process_index() * len(x) // count :][: len(x) // count]
    put = lambda x: jax.make_array_from_process_local_data(at, own(x))
    return jax.tree.map(put, tree)


def gathered(state):
    """All parameters as numbers, the same in every process."""
    whole = multihost_utils.process_allgather(state.params, tiled=True)
    return [np.asarray(x).ravel().tolist() for x in jax.tree.leaves(whole)]


def error_of(function):
    try:
        function()
    except (ValueError, AssertionError) as error:
        return str(error)
    return "no error"


def sweep(hparams, folder=None, devices=None):
    def loss(params, data, weights):
        errors = (data["x"] @ params["kernel"] - data["y"]) ** 2
        return jnp.sum(weights * jnp.mean(errors, axis=1)) / jnp.sum(weights)

    result = sweeps.sweep(
        lambda h: wdjax.adamw(0.01, weight_decay=h["weight_decay"]),
        hparams,
        shared.host_data(),
        init=lambda key: {"kernel": jnp.full((16, 8), 0.1)},
        loss=loss,
        folds=sweeps.kfold(shared.ROWS, 2),
        epochs=1,
        batch_size=BATCH,
        folder=folder,
        devices=devices,
    )
    return result.val.ravel().tolist()


def uninterrupted(mesh):
    """The run that the other job breaks off and takes up again."""
    data = from_parts(shared.host_data(), mesh)
    options = {"epochs": EPOCHS, "batch_size": BATCH, "progress": False}
    return wdjax.fit(make_step(), start(mesh, "x"), data, **options)


def check(mesh, folder):
    """Everything but the interruption; {what: result}."""
    found = {}
    for layout, axes in {"data-parallel": (), "fully sharded": ("x",)}.items():
        state, step, programs = start(mesh, *axes), make_step(), []
        for t in range(STEPS):
            state, metrics = step(state, from_parts(batch_of(t), mesh))
            programs.append(len(shared.COMPILED))
        found[layout] = gathered(state)
        found[f"{layout}, loss"] = float(metrics["loss"])
        found[f"{layout}, compiled again"] = programs[-1] - programs[0]
        shared.check_state_lies_like_its_parameters(state, 2)
    batches = (from_parts(batch_of(t), mesh) for t in range(STEPS))
    state, history = wdjax.fit(make_step(), start(mesh, "x"), batches, progress=False)
    found["fit, an iterator"] = gathered(state)
    found["fit, losses"] = history.metrics["loss"].tolist()
    found["fit, examples in parts"] = gathered(uninterrupted(mesh)[0])
    own = lambda **options: wdjax.fit(make_step(), start(mesh), shared.host_data(), **options)
    found["error, in memory"] = error_of(lambda: own(epochs=1, batch_size=BATCH))
    own = lambda: wdjax.fit(make_step(), start(mesh), iter([batch_of(0)]))
    found["error, an iterator"] = error_of(own)
    own = jax.random.key(jax.process_index())
    found["error, keys"] = error_of(
        lambda: wdjax.TrainState.create(state.params, shared.optimizer(), key=own)
    )
    grid = {"weight_decay": np.array(LAMBDAS)[jax.process_index() :: jax.process_count()]}
    found["sweep"] = sweep(grid, folder=folder / str(jax.process_index()))
    found["error, sweep"] = error_of(lambda: sweep(grid, devices=jax.devices()))
    return found


def resume(mesh, folder):
    """The same run as `uninterrupted`, with a checkpoint after every two steps."""
    import orbax.checkpoint as ocp

    # a random key is saved as its data
    packed = lambda state: state._replace(key=jax.random.key_data(state.key))
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder / "checkpoints", options=options) as manager:
        state = start(mesh, "x")
        if manager.latest_step() is not None:
            like = jax.tree.map(ocp.utils.to_shape_dtype_struct, packed(state))
            arguments = ocp.args.StandardRestore(like)
            state = manager.restore(manager.latest_step(), args=arguments)
            state = state._replace(key=jax.random.wrap_key_data(state.key))
        print("from", int(state.step), flush=True)

        def save(state):
            manager.save(int(state.step), args=ocp.args.StandardSave(packed(state)))
            print("saved", int(state.step), flush=True)

        data = from_parts(shared.host_data(), mesh)
        options = {"epochs": EPOCHS, "batch_size": BATCH, "progress": False}
        state, _ = wdjax.fit(make_step(), state, data, **options, chunk=2, on_chunk=save)
    return {"params": gathered(state)}


def main(job, rank, port, folder):
    """Print the results of the job as the last line."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(rank))
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)
    mesh = shared.mesh_of(shared.AUTO, x=4)
    found = {"check": check, "resume": resume}[job](mesh, pathlib.Path(folder))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
