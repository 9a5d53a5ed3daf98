"""The two jobs in PyTorch: an eager loop on one thread, which is faster here than on more."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

Train = Callable[[int], Callable[[Any], np.ndarray]]


def line(data: Any) -> Train:
    """A straight line, with a scheduler for the rate."""
    x, y = torch.tensor(data["x"]), torch.tensor(data["y"])[:, None]
    model = torch.nn.Linear(1, 1)
    groups = [{"params": [model.weight], "weight_decay": 1e-3}, {"params": [model.bias]}]
    sgd = torch.optim.SGD(groups, lr=0.1)
    law = torch.optim.lr_scheduler.LambdaLR(sgd, lambda t: (1 + (0.01 * t) ** 2) ** -0.5)
    loss = torch.nn.MSELoss()
    return _trainer(model, loss, sgd, lambda: _shuffled(x, y, 32), then=law.step)


def digits(data: Any, *, loader: bool = False) -> Train:
    """A network with one hidden layer; with a loader as in tutorials, or as fast as it gets."""
    x, y = torch.tensor(data["x"]), torch.tensor(data["y"], dtype=torch.int64)
    hidden, last = torch.nn.Linear(64, 128), torch.nn.Linear(128, 10)
    model = torch.nn.Sequential(hidden, torch.nn.ReLU(), last)
    groups = [
        {"params": [hidden.weight, last.weight], "weight_decay": 0.1},
        {"params": [hidden.bias, last.bias], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-3, fused=None if loader else True)
    rows = torch.utils.data.TensorDataset(x, y)
    batches = torch.utils.data.DataLoader(rows, batch_size=64, shuffle=True)
    draw = (lambda: batches) if loader else (lambda: _shuffled(x, y, 64))
    return _trainer(model, torch.nn.CrossEntropyLoss(), adamw, draw)


def _shuffled(x: torch.Tensor, y: torch.Tensor, size: int) -> Iterable[Any]:
    for rows in torch.randperm(len(x)).split(size):
        yield x[rows], y[rows]


def _trainer(
    model: Any, loss: Any, optimizer: Any, draw: Any, then: Callable[[], Any] = lambda: None
) -> Train:
    def train(epochs: int) -> Callable[[Any], np.ndarray]:
        torch.set_num_threads(1)
        for _ in range(epochs):
            for x, y in draw():
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()
                then()
        return lambda x: model(torch.tensor(x)).detach().numpy()

    return train
