"""Paired timings: each ratio compares two programs run in turn in one process.

    python scripts/bench.py [NAME ...] [--repeats N] [--json FILE] [--figure FILE]
                            [--smoke] [--alone]

A figure is the median of the paired ratios, with the smallest and the largest. Machines are noisy:
quote ratios, not times. Peers that are not installed are left out: `make peers` installs them.
"""

import argparse
import importlib
import json
from collections.abc import Sequence

import jax
from benchmarks import curves
from benchmarks.timing import PEERS, Figure, table
from options import new_file, whole_number

BENCHES = {  # name -> module, in which it is the function bench_NAME
    "step": "steps",
    "stacks": "stacks",
    "bandwidth": "bandwidth",
    "metrics": "metrics",
    "loop": "loops",
    "digits": "loops",
    "start": "starts",
    "step_one": "starts",
    "import": "startup",
    "rules": "startup",
    "startup": "leaves",
    "layers": "layers",
    "one": "sweeping",
    "many": "sweeping",
    "cube": "sweeping",
    "devices": "sweeping",
    "workers": "workers",
    "ridge": "linear_models",
    "folds": "linear_models",
    "groups": "linear_models",
    "lasso": "linear_models",
    "stream": "streams",
    "jaxopt": "linear_models",
    "growth": "growth",
    "audit": "audit",
    "accelerator": "accelerator",
}
FORMATS = (".png", ".svg", ".pdf")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen benchmarks and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHES))
    parser.add_argument("--repeats", type=whole_number, default=15)
    parser.add_argument("--json", type=new_file, help="also write every figure to this file")
    parser.add_argument(
        "--figure", type=new_file, default="out/growth.png", help="where growth draws its curves"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--alone", action="store_true", help="without other packages")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(BENCHES))
    if unknown:
        parser.error(f"unknown benchmarks {unknown}; there are {', '.join(BENCHES)}")
    if options.figure.suffix not in FORMATS:
        parser.error(f"--figure must end in one of {', '.join(FORMATS)}; got {options.figure}")
    PEERS["wanted"] = not options.alone
    if not options.smoke:
        jax.config.update("jax_enable_compilation_cache", False)  # what is cold is compiled
    repeats = 1 if options.smoke else options.repeats
    figures: list[Figure] = []
    for name in options.names or BENCHES:
        module = importlib.import_module(f"benchmarks.{BENCHES[name]}")
        new = getattr(module, f"bench_{name}")(repeats, options.smoke)
        if new:
            print(table(new, head=not figures), flush=True)
        figures += new
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps([f._asdict() for f in figures], indent=2))
    curves.draw(figures, options.figure)


if __name__ == "__main__":
    main()
