"""The notebooks run from an empty folder, and print and draw what is committed."""

import base64
import math
import pathlib
import re
import sys

import jax
import pytest
import script_files
from oracles import imported

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = pathlib.Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/wdjax/wdjax/blob/main/notebooks/"
MACHINE = "machine"  # the tag of cells whose numbers differ: devices, times, chaotic training
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?(?![\w])")
PLACES = re.compile(r"/(?:home|root|work|tmp|usr|opt|Users|mnt|var)/|[A-Z]:\\|0x[0-9a-f]{6,}")
LARGEST = 100 * 1024  # bytes of a figure


@pytest.fixture(scope="module", name="script")
def _script():
    return script_files.load("notebooks")


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", ())


def texts(cell):
    """Everything a cell printed or returned, but not what libraries wrote to stderr."""
    streams = [o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout"]
    data = [o.data for o in cell.outputs if "data" in o]
    return "\n".join(streams + [d["text/plain"] for d in data if "text/plain" in d])


def figures(cell):
    data = [o.data for o in cell.outputs if "data" in o]
    return [base64.b64decode(d["image/png"]) for d in data if "image/png" in d]


def value(text):
    number = float(text.rstrip("%").replace(",", "").replace("−", "-"))
    mantissa, _, exponent = text.rstrip("%").partition("e")
    decimals = len(mantissa.partition(".")[2])
    return number, 10.0 ** (int(exponent or 0) - decimals)


def is_near(one, other):
    """Equal to 5%, or to two units of the last printed digit: machines round differently."""
    (a, unit), (b, other_unit) = value(one), value(other)
    return math.isclose(a, b, rel_tol=0.05, abs_tol=2.001 * min(unit, other_unit))


def differences(before, after):
    """Where the words of two texts differ, or numbers by more than machines do."""
    words = [" ".join(NUMBER.sub("#", text).split()) for text in (before, after)]
    if words[0] != words[1]:
        return [tuple(words)]
    pairs = zip(NUMBER.findall(before), NUMBER.findall(after), strict=True)
    return [pair for pair in pairs if not is_near(*pair)]


def test_there_are_notebooks():
    assert PATHS


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("loss 0.501", "loss 0.499"),
        ("a  1\nb 2", "a 1\nb  2"),
        ("λ = 1.0e-07", "λ = 1.2e-07"),
        ("12,345 of 64x10", "12,400 of 64x10"),
        ("right 97.2%", "right 96.9%"),
    ],
)
def test_rounding_and_spacing_are_no_differences(before, after):
    assert differences(before, after) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("loss 0.50", "loss 0.60"),
        ("loss 0.50", "loss nan"),
        ("loss 0.50", "Loss 0.50"),
        ("norm 3.0", "norm -3.0"),
        ("λ = 1e-07", "λ = 1e-06"),
        ("kernel (64, 10)", "kernel (64, 16)"),
        ("a 1", "a 1 2"),
    ],
)
def test_other_words_and_other_numbers_are_differences(before, after):
    assert differences(before, after)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_badge_opens_it_and_the_first_cell_installs_the_package_on_colab_only(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert f"({COLAB}{path.name})" in notebook.cells[0].source
    lines = code(notebook)[0].source.splitlines()
    guard = lines.index('if "google.colab" in sys.modules:')
    installs = [i for i, line in enumerate(lines) if "%pip install" in line]
    assert installs
    assert all(i > guard and lines[i].startswith("    ") for i in installs)
    assert any("wdjax[" in lines[i] for i in installs)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_committed_outputs_are_whole_clean_and_small(path):
    cells = code(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
        assert not PLACES.search(texts(cell)), texts(cell)
        assert sys.prefix not in texts(cell)
        assert "Warning" not in texts(cell)
        for figure in figures(cell):
            assert len(figure) <= LARGEST, f"{len(figure)} bytes"


# a minute each: they train
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of what talks to the kernel
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_runs_and_shows_what_is_committed(path, script):
    if path.stem == "6_tpu" and jax.__version_info__ < (0, 10):
        pytest.skip("its line `reshard` also takes axes of type Auto, as JAX does from 0.10 on")
    if path.stem in script.NEEDS:
        imported(script.NEEDS[path.stem])
    committed = nbformat.read(path, as_version=4)
    notebook = script.executed(path)  # raises the error of a cell
    for before, after in zip(code(committed), code(notebook), strict=True):
        assert len(figures(before)) == len(figures(after)), after.source
        if MACHINE not in tags(before):
            assert differences(texts(before), texts(after)) == [], after.source


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_script_keeps_outputs_and_raises_the_error_of_a_cell(script, tmp_path, capsys):
    new, path = nbformat.v4, tmp_path / "small.ipynb"
    nbformat.write(new.new_notebook(cells=[new.new_code_cell("print(6 * 7)")]), path)
    script.main([str(path)])
    (cell,) = code(nbformat.read(path, as_version=4))
    assert (cell.execution_count, texts(cell)) == (1, "42\n")
    assert capsys.readouterr().out.startswith("small.ipynb: ")
    nbformat.write(new.new_notebook(cells=[new.new_code_cell("1 / 0")]), path)
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="ZeroDivisionError"):
        script.main([str(path)])
