"""How the weights of each kind of package are stepped.

A family takes

    code    builds the optimizer from params, lr and wd
    names   what the code may use
    start   the first weights
    rates   the learning rate of each step; the first one builds the optimizer
    wd      λ
    dtype   "float64", "float32" or "bfloat16"

and returns three functions: `read` gives the weights as float64 arrays, `write` sets them, and
`step` takes a learning rate and gradients.
"""

import numpy as np

KEYS = ("kernel", "bias")


def course(family, code, names, start, gradients, rates, wd, dtype, change=None):
    """Return the weights before the first step and after each.

    `gradients` maps the step and the weights to the gradients; `change`, if it is given, the step
    and the weights before and after it to what they are then set to.
    """
    read, write, step = FAMILIES[family](code, dict(names), start, rates, wd, dtype)
    seen = [read()]
    for t, rate in enumerate(rates):
        step(rate, gradients(t, seen[-1]))
        if change is not None:
            write(change(t, seen[-1], read()))
        seen.append(read())
    return seen


def torch(code, names, start, rates, wd, dtype):
    """torch.optim.Optimizer and what derives from it: rates are set in the param groups."""
    import torch

    kind = getattr(torch, dtype)
    params = [torch.nn.Parameter(torch.tensor(x).to(kind)) for x in start]
    named = dict(zip(KEYS, params, strict=False))
    optimizer = eval(code, {**names, "params": params, "named": named, "lr": rates[0], "wd": wd})
    if callable(getattr(optimizer, "train", None)):  # schedule-free
        optimizer.train()
    earlier = [rates[0]]

    def write(weights):
        for p, x in zip(params, weights, strict=True):
            p.data.copy_(torch.tensor(x).to(kind))

    def step(rate, gradients):
        if rate != earlier[0]:  # as schedulers do; some optimizers write there as well
            earlier[0] = rate
            set_rate(optimizer, rate)
        for p, g in zip(params, gradients, strict=True):
            p.grad = torch.tensor(g).to(kind)
        optimizer.step()

    return lambda: [p.detach().double().numpy().copy() for p in params], write, step


def set_rate(optimizer, rate):
    """Set the learning rate as the schedulers of the package do."""
    if hasattr(optimizer, "set_hyper"):  # fastai
        optimizer.set_hyper("lr", rate)
        return
    for group in optimizer.param_groups:
        filled = getattr(group["lr"], "fill_", None)  # torchao's is a tensor
        group["lr"] = filled(rate) if filled else rate


def keras(code, names, start, rates, wd, dtype):
    """keras.optimizers, on Keras' JAX backend: rates are assigned."""
    import keras

    wide = "float64" if dtype == "float64" else "float32"
    keras.config.set_floatx(wide)
    params = [
        keras.Variable(x, dtype=dtype, name=name) for x, name in zip(start, KEYS, strict=False)
    ]
    optimizer = eval(code, {**names, "lr": rates[0], "wd": wd})
    optimizer.build(params)

    def write(weights):
        for p, x in zip(params, weights, strict=True):
            p.assign(x)

    def step(rate, gradients):
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(g, dtype) for g in gradients], params)

    read = lambda: [np.asarray(keras.ops.cast(p.value, wide), np.float64) for p in params]
    return read, write, step


def optax(code, names, start, rates, wd, dtype):
    """Optax and what builds Optax transformations: a rate that changes is a schedule."""
    import jax
    import jax.numpy as jnp
    import optax

    wide = "float64" if dtype == "float64" else "float32"
    jax.config.update("jax_enable_x64", dtype == "float64")
    params = {key: jnp.asarray(x, dtype) for key, x in zip(KEYS, start, strict=False)}
    keys, table = list(params), jnp.asarray(rates, wide)
    lr = rates[0] if len(set(rates)) == 1 else lambda count: table[count]
    built = eval(code, {**names, "params": params, "lr": lr, "wd": wd})
    tx = optax.with_extra_args_support(built)
    state = tx.init(params)

    @jax.jit
    def jitted(grads, state, params):
        updates, state = tx.update(grads, state, params, value=jnp.ones((), dtype))
        return optax.apply_updates(params, updates), state

    def write(weights):
        params.update({key: jnp.asarray(x, dtype) for key, x in zip(keys, weights, strict=True)})

    def step(rate, gradients):
        nonlocal state
        grads = {key: jnp.asarray(g, dtype) for key, g in zip(keys, gradients, strict=True)}
        new, state = jitted(grads, state, params)
        params.update(new)

    return lambda: [np.asarray(params[k].astype(wide), np.float64) for k in keys], write, step


def mlx(code, names, start, rates, wd, dtype):
    """mlx.optimizers: gradients and parameters go in, parameters come out."""
    import mlx.core as mx

    wide = "float64" if dtype == "float64" else "float32"
    if wide == "float64":
        mx.set_default_device(mx.cpu)
    array = lambda x: mx.array(x.astype(wide), getattr(mx, wide)).astype(getattr(mx, dtype))
    params = {key: array(x) for key, x in zip(KEYS, start, strict=False)}
    keys = list(params)
    optimizer = eval(code, {**names, "lr": rates[0], "wd": wd})

    def write(weights):
        params.update({key: array(x) for key, x in zip(keys, weights, strict=True)})

    def step(rate, gradients):
        optimizer.learning_rate = mx.array(rate, getattr(mx, wide))
        grads = {key: array(g) for key, g in zip(keys, gradients, strict=True)}
        params.update(optimizer.apply_gradients(grads, params))

    kind = getattr(mx, wide)
    read = lambda: [np.array(params[key].astype(kind)).astype(np.float64) for key in keys]
    return read, write, step


def paddle(code, names, start, rates, wd, dtype):
    """paddle.optimizer: the gradient is that of Σ g·θ."""
    import paddle

    tensor = lambda x: paddle.to_tensor(x, dtype=dtype)
    params = []
    for x in start:
        p = paddle.create_parameter(list(x.shape), dtype)
        p.set_value(tensor(x))
        params.append(p)
    optimizer = eval(code, {**names, "params": params, "lr": rates[0], "wd": wd})

    def write(weights):
        for p, x in zip(params, weights, strict=True):
            p.set_value(tensor(x))

    def step(rate, gradients):
        optimizer.set_lr(rate)
        sum((p * tensor(g)).sum() for p, g in zip(params, gradients, strict=True)).backward()
        optimizer.step()
        optimizer.clear_grad()

    read = lambda: [p.astype("float64").numpy().copy() for p in params]
    return read, write, step


def tinygrad(code, names, start, rates, wd, dtype):
    """tinygrad.nn.optim: as in PyTorch, but the rate is a tensor."""
    from tinygrad import Context, Tensor, dtypes

    tensor = lambda x: Tensor(x.astype(np.float32)).cast(getattr(dtypes, dtype)).realize()
    params = [tensor(x).is_param_(True) for x in start]
    optimizer = eval(code, {**names, "params": params, "lr": rates[0], "wd": wd})

    def write(weights):
        for p, x in zip(params, weights, strict=True):
            p.assign(tensor(x)).realize()

    def step(rate, gradients):
        optimizer.lr.assign(Tensor([rate], dtype=optimizer.lr.dtype)).realize()
        for p, g in zip(params, gradients, strict=True):
            p.grad = tensor(g)
        with Context(TRAINING=1):
            optimizer.step()

    read = lambda: [p.cast(dtypes.float32).numpy().astype(np.float64) for p in params]
    return read, write, step


def thinc(code, names, start, rates, wd, dtype):
    """thinc.api: an optimizer maps a key, weights and gradients to new weights."""
    optimizer = eval(code, {**names, "lr": rates[0], "wd": wd})
    weights = [x.astype(dtype) for x in start]

    def write(new):
        weights[:] = [x.astype(dtype) for x in new]

    def step(rate, gradients):
        optimizer.learn_rate = rate
        for i, g in enumerate(gradients):
            weights[i] = np.array(optimizer((0, KEYS[i]), weights[i].copy(), g.astype(dtype))[0])

    return lambda: [w.astype(np.float64) for w in weights], write, step


def sklearn(code, names, start, rates, wd, dtype):
    """sklearn.neural_network: a net without hidden layer, fed so that the gradient is as given.

    With one sample for each input, x = I and a target of n g off the output, the gradient of the
    mean loss is g.
    """
    (first,) = start
    n = len(first)
    net = eval(code, {**names, "lr": rates[0], "wd": wd, "n": n})
    net.partial_fit(np.eye(n), np.zeros(first.shape))
    net.coefs_[0][...] = first
    net.intercepts_[0][...] = 0
    fresh = type(net._optimizer)
    settings = {"momentum": net.momentum, "nesterov": net.nesterovs_momentum}
    is_sgd = net.solver == "sgd"
    net._optimizer = fresh(net.coefs_ + net.intercepts_, rates[0], **(settings if is_sgd else {}))

    def write(weights):
        net.coefs_[0][...] = weights[0]

    def step(rate, gradients):
        net._optimizer.learning_rate_init = net._optimizer.learning_rate = rate
        target = net.coefs_[0] + net.intercepts_[0] - n * gradients[0]
        net.partial_fit(np.eye(n), target)
        net.intercepts_[0][...] = 0

    return lambda: [net.coefs_[0].astype(np.float64)], write, step


def chainer(code, names, start, rates, wd, dtype):
    """chainer.optimizers: a step of a link; what has no rate `lr` calls it `alpha`."""
    import chainer

    link = chainer.Link()
    with link.init_scope():
        for key, x in zip(KEYS, start, strict=False):
            setattr(link, key, chainer.Parameter(x.astype(dtype)))
    params = [getattr(link, key) for key in KEYS[: len(start)]]
    optimizer, *hooks = eval(code, {**names, "lr": rates[0], "wd": wd})
    optimizer.setup(link)
    for hook in hooks:
        optimizer.add_hook(hook)
    rate_name = "lr" if "lr" in optimizer.hyperparam.get_dict() else "alpha"

    def write(weights):
        for p, x in zip(params, weights, strict=True):
            p.array[...] = x

    def step(rate, gradients):
        setattr(optimizer.hyperparam, rate_name, rate)
        for p, g in zip(params, gradients, strict=True):
            p.grad = g.astype(dtype)
        optimizer.update()

    return lambda: [p.array.astype(np.float64) for p in params], write, step


FAMILIES = {
    "torch": torch,
    "keras": keras,
    "optax": optax,
    "mlx": mlx,
    "paddle": paddle,
    "tinygrad": tinygrad,
    "thinc": thinc,
    "sklearn": sklearn,
    "chainer": chainer,
}
