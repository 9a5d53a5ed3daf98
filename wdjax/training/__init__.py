"""The training step and the loop around it."""

from wdjax.training._loop import History, fit
from wdjax.training._step import TrainState, make_train_step

__all__ = [
    "History",
    "TrainState",
    "fit",
    "make_train_step",
]
