"""Memory and communication of a training step, on paper, for models that need many devices.

    python scripts/memory.py [--devices N] [--group G] [--store mixed|float32]

Per device: bytes held for parameters, gradients and optimizer state, and bytes sent by the ring
algorithms in a step. Activations and buffers come on top. GB is 10⁹ bytes.

Rajbhandari et al., *ZeRO: Memory Optimizations Toward Training Trillion Parameter Models*, 2020,
arXiv:1910.02054, sections 3, 5 and 7; Zhao et al., *PyTorch FSDP*, 2023, arXiv:2304.11277, section
3.2.2 (hybrid); Patarasuk and Yuan, *Bandwidth Optimal All-reduce Algorithms for Clusters of
Workstations*, 2009 (rings).
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

from options import whole_number

MODELS = {"1B": 1e9, "7B": 7e9, "70B": 70e9, "405B": 405e9, "1T": 1e12}
DEVICES, GROUP = 1024, 256


class Store(NamedTuple):
    """Bytes per parameter.

    Args:
        params: p, what the model computes with, and what is gathered.
        grads: g, what is reduced.
        state: s, the optimizer's, with a float32 copy or residual of narrow parameters.
    """

    params: float
    grads: float
    state: float


STORES = {
    # Adam's two float32 moments, and float32 residuals (`compensated`) or master weights
    "mixed": Store(2, 2, 12),
    "float32": Store(4, 4, 8),
}


# Rings of n devices. Each sends x bytes n − 1 times in n parts, for all-reduce both ways.


def all_gather(x: float, n: float) -> float:
    """(n − 1)/n x bytes sent by each of n devices, until all have all x bytes."""
    return (n - 1) / n * x


def reduce_scatter(x: float, n: float) -> float:
    """(n − 1)/n x bytes sent by each, until each has the sum of its part of x bytes."""
    return (n - 1) / n * x


def all_reduce(x: float, n: float) -> float:
    """2 (n − 1)/n x bytes sent by each, until all have the sum of x bytes."""
    return reduce_scatter(x, n) + all_gather(x, n)


class Cost(NamedTuple):
    """Bytes per device: held between steps (parameters, gradients, state), sent in a step."""

    params: float
    grads: float
    state: float
    sent: float

    @property
    def held(self) -> float:
        """All three together."""
        return self.params + self.grads + self.state


# Ψ parameters on N devices, in groups of G for the last.


def data_parallel(psi: float, store: Store, n: float, group: float) -> Cost:
    """(p + g + s) Ψ held; gradients are all-reduced."""
    del group
    p, g, s = (each * psi for each in store)
    return Cost(p, g, s, all_reduce(g, n))


def sharded_state(psi: float, store: Store, n: float, group: float) -> Cost:
    """(p + g + s/N) Ψ held, ZeRO-1; gradients are scattered, new parameters gathered."""
    del group
    p, g, s = (each * psi for each in store)
    return Cost(p, g, s / n, reduce_scatter(g, n) + all_gather(p, n))


def sharded_gradients(psi: float, store: Store, n: float, group: float) -> Cost:
    """(p + (g + s)/N) Ψ held, ZeRO-2; sent as in ZeRO-1."""
    del group
    p, g, s = (each * psi for each in store)
    return Cost(p, g / n, s / n, reduce_scatter(g, n) + all_gather(p, n))


def fully_sharded(psi: float, store: Store, n: float, group: float) -> Cost:
    """(p + g + s) Ψ/N held, ZeRO-3; parameters are gathered forward and backward."""
    del group
    p, g, s = (each * psi for each in store)
    return Cost(p / n, g / n, s / n, 2 * all_gather(p, n) + reduce_scatter(g, n))


def hybrid(psi: float, store: Store, n: float, group: float) -> Cost:
    """(p + g + s) Ψ/G held; fully sharded in each group, data-parallel between the N/G groups."""
    inside = fully_sharded(psi, store, group, group)
    return inside._replace(sent=inside.sent + all_reduce(inside.grads, n / group))


SCHEMES: dict[str, Callable[[float, Store, float, float], Cost]] = {
    "data-parallel": data_parallel,
    "ZeRO-1": sharded_state,
    "ZeRO-2": sharded_gradients,
    "fully sharded": fully_sharded,
    "hybrid": hybrid,
}


# What decay adds to all of them.


class Extra(NamedTuple):
    """What a method adds, in bytes and in float32 numbers.

    Args:
        per_param: bytes per parameter, divided among the devices as the optimizer's state.
        per_group: bytes per group of weights that has a number of its own.
        sums: and largest entries, per group, that are all-reduced in a step wherever several
            devices share a group.
    """

    per_param: float = 0
    per_group: float = 0
    sums: float = 0


METHODS = {
    "l2, l1 and other sums over entries; coupled, cautious": Extra(),
    'anchor "init" (bfloat16, as the parameters)': Extra(per_param=2),
    "anchor ema": Extra(per_param=4),
    "`compensated` (counted among the state above)": Extra(per_param=4),
    "`group_lasso`, `ball`, `sphere` of neurons": Extra(sums=1),
    "`radial.hyperball` of neurons": Extra(per_group=4, sums=4),
    "`adaptive.cpr` of whole leaves": Extra(per_group=12, sums=1),
}


def held_by(extra: Extra, psi: float, groups: float, n: float) -> float:
    """Bytes on each device, at most: every group's number may lie on all of them."""
    return extra.per_param * psi / n + extra.per_group * groups


def sent_by(extra: Extra, groups: float, n: float) -> float:
    """2 (N − 1)/N 4 r bytes for each group with r sums."""
    return all_reduce(4 * extra.sums * groups, n)


def shown(size: float) -> str:
    """Write bytes with two digits at least, in the largest unit of which there is one."""
    units = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0}
    name = next((name for name in units if size >= units[name]), None)
    if name is None:
        return "0"
    value = size / units[name]
    return f"{value:,.0f} {name}" if value >= 10 else f"{value:.1f} {name}"


def models_table(store: Store, devices: float, group: float) -> str:
    """A row for each model: held, sent under every scheme."""
    rows = [["parameters", *SCHEMES], ["---"] * (len(SCHEMES) + 1)]
    for name, psi in MODELS.items():
        costs = [scheme(psi, store, devices, group) for scheme in SCHEMES.values()]
        rows.append([name, *(f"{shown(cost.held)}, {shown(cost.sent)}" for cost in costs)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def methods_table(
    devices: float, psi: float = 70e9, leaves: float = 560, width: float = 8192
) -> str:
    """A row for each kind of method: held, sent. Neurons have `width` weights."""
    rows = [["decay of 70B parameters", "held", "sent"], ["---"] * 3]
    for name, extra in METHODS.items():
        groups = leaves if "leaves" in name else psi / width
        cells = held_by(extra, psi, groups, devices), sent_by(extra, groups, devices)
        rows.append([name, *map(shown, cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--devices", type=whole_number, default=DEVICES, help="N")
    parser.add_argument(
        "--group", type=whole_number, help=f"G, of the hybrid, divides N; default: N, most {GROUP}"
    )
    parser.add_argument("--store", choices=STORES, default="mixed")
    options = parser.parse_args()
    group = options.group or min(options.devices, GROUP)
    if options.devices % group:
        parser.error(f"--group must divide --devices; got {group} and {options.devices}")
    print(models_table(STORES[options.store], options.devices, group))
    print()
    print(methods_table(options.devices))


if __name__ == "__main__":
    main()
