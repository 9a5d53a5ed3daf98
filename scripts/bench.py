"""Paired timings: each ratio compares two programs run in turn in one process.

    python scripts/bench.py [NAME ...] [--repeats N] [--json FILE] [--figure FILE]
                            [--smoke] [--alone]

A figure is the median of the paired ratios, with the smallest and the largest. Machines are noisy:
quote ratios, not times. Peers that are not installed are left out: `make peers` installs them.
"""

import argparse
import importlib
import json

from benchmarks import curves
from benchmarks.timing import PEERS, Figure, table

BENCHES = {  # name -> module, in which it is the function bench_NAME
    "step": "steps",
    "stacks": "stacks",
    "bandwidth": "bandwidth",
    "metrics": "metrics",
    "loop": "loops",
    "digits": "loops",
    "start": "starts",
    "import": "startup",
    "rules": "startup",
    "one": "sweeping",
    "many": "sweeping",
    "cube": "sweeping",
    "devices": "sweeping",
    "ridge": "linear_models",
    "folds": "linear_models",
    "groups": "linear_models",
    "lasso": "linear_models",
    "jaxopt": "linear_models",
    "growth": "growth",
    "accelerator": "accelerator",
}


def main() -> None:
    """Run the chosen benchmarks and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("which", nargs="*", choices=[*BENCHES, []], help="default: all")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", help="also write every figure to this file")
    parser.add_argument("--figure", default="out/growth.png", help="where growth draws its curves")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--alone", action="store_true", help="without other packages")
    options = parser.parse_args()
    PEERS["wanted"] = not options.alone
    repeats = 1 if options.smoke else options.repeats
    figures: list[Figure] = []
    for name in options.which or BENCHES:
        module = importlib.import_module(f"benchmarks.{BENCHES[name]}")
        new = getattr(module, f"bench_{name}")(repeats, options.smoke)
        if new:
            print(table(new, head=not figures), flush=True)
        figures += new
        if options.json:
            with open(options.json, "w") as file:
                json.dump([figure._asdict() for figure in figures], file, indent=2)
    curves.draw(figures, options.figure)


if __name__ == "__main__":
    main()
