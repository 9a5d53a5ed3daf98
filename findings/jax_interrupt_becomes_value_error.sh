#!/usr/bin/env bash
# jax 0.10.2: a jitted function compares its static arguments, and shardings too, to find out whether
# it is compiled. An interrupt (Ctrl-C) that arrives inside such a comparison comes out as a
# ValueError about comparisons, and code that waits for KeyboardInterrupt to save a state does not see
# it. Shardings are compared whenever arrays are moved, so it also happens without static arguments.
# Seen: ValueError, and KeyboardInterrupt from the same comparison by Python's dict
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - <<'PYTHON'
import functools
import signal

import jax


class Setting:
    """A static argument; the interrupt arrives while two of them are compared."""

    def __hash__(self):
        return 1

    def __eq__(self, other):
        signal.raise_signal(signal.SIGINT)
        return isinstance(other, Setting)


@functools.partial(jax.jit, static_argnums=1)
def step(x, setting):
    return x + 1


def raised_by(call):
    try:
        call()
    except BaseException as error:
        return error


signal.signal(signal.SIGINT, signal.default_int_handler)
step(1.0, Setting())
of_jax = raised_by(lambda: step(1.0, Setting()))
of_dict = raised_by(lambda: {Setting(): 1}[Setting()])
print(f"{type(of_jax).__name__}, and {type(of_dict).__name__} from the same comparison by Python's dict")
assert type(of_jax) is ValueError, "the behaviour has changed"
assert "comparable using __eq__" in str(of_jax)
assert type(of_dict) is KeyboardInterrupt
PYTHON
