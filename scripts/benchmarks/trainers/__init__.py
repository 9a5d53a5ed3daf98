"""Two jobs, each in several libraries: `line` and `digits` make a model and return `train`.

`train(epochs)` trains it and returns `predict(x)`. The documents' job is a straight line through
80 points: mini-batches of 32, SGD with a falling rate, L2 on the slope. The other is a network of
64-128-10 for digits: mini-batches of 64, AdamW, decay of the kernels. A new call of `line` or
`digits` compiles anew. Each file imports its own library alone, for runs in fresh processes.
"""

from benchmarks.timing import installed


def available(library: str) -> bool:
    """Whether it is here, as Optax always is; Keras needs one of two others under it."""
    if library == "keras":
        return installed("keras") and (installed("tensorflow") or installed("torch"))
    return library == "optax" or installed(library)
