"""CONTRIBUTING.md: its skeletons run in the files where it puts them."""

import doctest
import pathlib
import re

import pytest

from wdjax import adaptive, penalties

PAGE = (pathlib.Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("name", "module"), [("dead_zone", penalties), ("averaged", adaptive)])
def test_a_skeleton_runs_and_gives_the_numbers_of_its_example(name, module):
    (code,) = (block for block in BLOCKS if block.startswith(f"def {name}(") and ">>>" in block)
    names = dict(vars(module))
    exec(code, names)  # the page is ours
    (test,) = doctest.DocTestFinder().find(names[name], name, module=False, globs=names)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0
