"""How the weights of each kind of package are stepped: one function each, with the same arguments.

    code       builds the optimizer from params, lr and wd
    names      what the code may use
    start      the first weights
    gradients  (step, weights) -> the gradients
    rates      the learning rate of each step; the first one builds the optimizer
    wd         λ
    dtype      "float64", "float32" or "bfloat16"

They return the weights before the first step and after each, as float64 arrays.
"""

import numpy as np

KEYS = ("kernel", "bias")


def torch(code, names, start, gradients, rates, wd, dtype):
    """torch.optim.Optimizer and what derives from it: rates are set in the param groups."""
    import torch

    kind = getattr(torch, dtype)
    params = [torch.nn.Parameter(torch.tensor(x).to(kind)) for x in start]
    named = dict(zip(KEYS, params, strict=False))
    optimizer = eval(code, {**names, "params": params, "named": named, "lr": rates[0], "wd": wd})
    if callable(getattr(optimizer, "train", None)):  # schedule-free
        optimizer.train()
    seen = [[p.detach().double().numpy().copy() for p in params]]
    for t, rate in enumerate(rates):
        if rate != rates[max(t - 1, 0)]:
            for group in optimizer.param_groups:
                group["lr"] = rate
        for p, g in zip(params, gradients(t, seen[-1]), strict=True):
            p.grad = torch.tensor(g).to(kind)
        optimizer.step()
        seen.append([p.detach().double().numpy().copy() for p in params])
    return seen


def fastai(code, names, start, gradients, rates, wd, dtype):
    """fastai's Optimizer is not torch's: rates are set as hyperparameters."""
    import torch

    kind = getattr(torch, dtype)
    params = [torch.nn.Parameter(torch.tensor(x).to(kind)) for x in start]
    optimizer = eval(code, {**names, "params": params, "lr": rates[0], "wd": wd})
    seen = [[p.detach().double().numpy().copy() for p in params]]
    for t, rate in enumerate(rates):
        optimizer.set_hyper("lr", rate)
        for p, g in zip(params, gradients(t, seen[-1]), strict=True):
            p.grad = torch.tensor(g).to(kind)
        optimizer.step()
        seen.append([p.detach().double().numpy().copy() for p in params])
    return seen


def keras(code, names, start, gradients, rates, wd, dtype):
    """keras.optimizers, on Keras' JAX backend: rates are assigned."""
    import keras

    keras.config.set_floatx("float64" if dtype == "float64" else "float32")
    params = [
        keras.Variable(x, dtype=dtype, name=name) for x, name in zip(start, KEYS, strict=False)
    ]
    optimizer = eval(code, {**names, "lr": rates[0], "wd": wd})
    optimizer.build(params)
    read = lambda: [np.asarray(keras.ops.cast(p, "float32" if dtype != "float64" else dtype),
                               np.float64) for p in params]  # fmt: skip
    seen = [read()]
    for t, rate in enumerate(rates):
        optimizer.learning_rate = rate
        grads = [keras.ops.convert_to_tensor(g, dtype) for g in gradients(t, seen[-1])]
        optimizer.apply(grads, params)
        seen.append(read())
    return seen


def optax(code, names, start, gradients, rates, wd, dtype):
    """Optax and what builds Optax transformations: a rate that changes is a schedule."""
    import jax
    import jax.numpy as jnp
    import optax

    jax.config.update("jax_enable_x64", dtype == "float64")
    params = {key: jnp.asarray(x, dtype) for key, x in zip(KEYS, start, strict=False)}
    table = jnp.asarray(rates, "float64" if dtype == "float64" else "float32")
    lr = rates[0] if len(set(rates)) == 1 else lambda count: table[count]
    tx = optax.with_extra_args_support(eval(code, {**names, "lr": lr, "wd": wd}))
    state = tx.init(params)

    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params, value=jnp.ones((), dtype))
        return optax.apply_updates(params, updates), state

    read = lambda: [np.asarray(x.astype(table.dtype), np.float64) for x in params.values()]
    params = {key: params[key] for key in KEYS if key in params}
    seen = [read()]
    for t in range(len(rates)):
        grads = {k: jnp.asarray(g, dtype) for k, g in zip(KEYS, gradients(t, seen[-1]),
                                                          strict=False)}  # fmt: skip
        new, state = step(grads, state, params)
        params = {key: new[key] for key in params}
        seen.append(read())
    return seen


def mlx(code, names, start, gradients, rates, wd, dtype):
    """mlx.optimizers: gradients and parameters go in, parameters come out."""
    import mlx.core as mx

    kind = getattr(mx, dtype)
    params = {key: mx.array(x.astype(np.float32)).astype(kind)
              for key, x in zip(KEYS, start, strict=False)}  # fmt: skip
    optimizer = eval(code, {**names, "lr": rates[0], "wd": wd})
    read = lambda: [np.asarray(x.astype(mx.float32), np.float64) for x in params.values()]
    seen = [read()]
    for t, rate in enumerate(rates):
        optimizer.learning_rate = rate
        grads = [mx.array(g.astype(np.float32)).astype(kind) for g in gradients(t, seen[-1])]
        params = optimizer.apply_gradients(dict(zip(KEYS, grads, strict=False)), params)
        params = {key: params[key] for key in KEYS if key in params}
        seen.append(read())
    return seen


def paddle(code, names, start, gradients, rates, wd, dtype):
    """paddle.optimizer: the gradient is that of Σ g·θ."""
    import paddle

    params = [
        paddle.create_parameter(
            list(x.shape), "float32" if dtype == "bfloat16" else dtype, name=f"{key}_{id(start)}"
        )
        for x, key in zip(start, KEYS, strict=False)
    ]
    for p, x in zip(params, start, strict=True):
        p.set_value(paddle.to_tensor(x, dtype=p.dtype))
    if dtype == "bfloat16":
        for p in params:
            p._to(dtype="bfloat16") if hasattr(p, "_to") else None
    optimizer = eval(code, {**names, "params": params, "lr": rates[0], "wd": wd})
    read = lambda: [np.asarray(p.astype("float32" if dtype == "bfloat16" else dtype).numpy(),
                               np.float64) for p in params]  # fmt: skip
    seen = [read()]
    for t, rate in enumerate(rates):
        optimizer.set_lr(rate)
        loss = 0
        for p, g in zip(params, gradients(t, seen[-1]), strict=True):
            loss = loss + (p * paddle.to_tensor(g, dtype=p.dtype)).sum()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        seen.append(read())
    return seen


def tinygrad(code, names, start, gradients, rates, wd, dtype):
    """tinygrad.nn.optim: the rate is a tensor that is assigned."""
    from tinygrad import Tensor, dtypes

    Tensor.training = True
    kind = getattr(dtypes, dtype)
    params = [Tensor(x.astype(np.float32)).cast(kind).contiguous().realize() for x in start]
    for p in params:
        p.requires_grad = True
    optimizer = eval(code, {**names, "params": params, "lr": rates[0], "wd": wd})
    read = lambda: [p.cast(dtypes.float32).numpy().astype(np.float64) for p in params]
    seen = [read()]
    for t, rate in enumerate(rates):
        optimizer.lr.assign(Tensor([rate], dtype=optimizer.lr.dtype)).realize()
        for p, g in zip(params, gradients(t, seen[-1]), strict=True):
            p.grad = Tensor(g.astype(np.float32)).cast(kind).realize()
        optimizer.step()
        seen.append(read())
    return seen


def chainer(code, names, start, gradients, rates, wd, dtype):
    """chainer.optimizers: `code` builds the optimizer, and may add hooks as a pair with it."""
    import chainer

    link = chainer.Link()
    with link.init_scope():
        for key, x in zip(KEYS, start, strict=False):
            setattr(link, key, chainer.Parameter(x.astype(dtype)))
    built = eval(code, {**names, "lr": rates[0], "wd": wd})
    optimizer, hook = built if isinstance(built, tuple) else (built, None)
    optimizer.setup(link)
    if hook is not None:
        optimizer.add_hook(hook)
    params = [getattr(link, key) for key, _ in zip(KEYS, start, strict=False)]
    read = lambda: [np.array(p.array, np.float64) for p in params]
    rate_name = "lr" if "lr" in optimizer.hyperparam.get_dict() else "alpha"
    seen = [read()]
    for t, rate in enumerate(rates):
        setattr(optimizer.hyperparam, rate_name, rate)
        for p, g in zip(params, gradients(t, seen[-1]), strict=True):
            p.grad = g.astype(dtype)
        optimizer.update()
        seen.append(read())
    return seen


def thinc(code, names, start, gradients, rates, wd, dtype):
    """thinc.api: an optimizer maps a key, weights and gradients to new weights."""
    optimizer = eval(code, {**names, "lr": rates[0], "wd": wd})
    weights = [x.astype(dtype) for x in start]
    seen = [[np.array(w, np.float64) for w in weights]]
    for t, rate in enumerate(rates):
        optimizer.learn_rate = rate
        for i, g in enumerate(gradients(t, seen[-1])):
            new, _ = optimizer((0, KEYS[i]), weights[i].copy(), g.astype(dtype))
            weights[i] = np.array(new)
        seen.append([np.array(w, np.float64) for w in weights])
    return seen


FAMILIES = {
    "torch": torch,
    "fastai": fastai,
    "keras": keras,
    "optax": optax,
    "mlx": mlx,
    "paddle": paddle,
    "tinygrad": tinygrad,
    "chainer": chainer,
    "thinc": thinc,
}
