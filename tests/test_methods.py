"""The page of all methods is what the code says now."""

import pathlib
import re
import warnings

import pytest
import script_files

import wdjax

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "METHODS.md").read_text(encoding="utf-8")
TABLES = re.findall(r"^\| `(.+)$", PAGE, flags=re.M)


@pytest.fixture(scope="module", name="script")
def _script():
    return script_files.load("methods")


def without_bytes(page):
    """The column depends on the compiler: only its presence is compared."""
    lines = [re.split(r"(?<!\\) \| ", line) for line in page.splitlines()]
    return [line[:3] + line[4:] if line[0].startswith("| `") else line for line in lines]


@pytest.mark.filterwarnings("ignore:.*too weak")
def test_the_page_is_what_the_generator_prints(script):
    """If this fails: python scripts/methods.py --write."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert without_bytes(PAGE) == without_bytes(script.page(measure=False))


def test_the_bytes_are_whole_numbers():
    column = [re.split(r"(?<!\\) \| ", line)[3] for line in TABLES]
    assert len(column) > 60
    assert all(re.fullmatch(r"\+?\d+|", text) for text in column), column


def test_what_a_method_moves_is_measured_on_the_compiled_step(script):
    """Adam has to read θ, g, μ, ν and write θ, μ, ν; decay fuses; an anchor is read, too."""
    assert script._adam("float32") >= 28
    plain = wdjax.decay_weights(0.1, rules=script.EVERYTHING)
    anchored = wdjax.decay_weights(0.1, anchor="init", rules=script.EVERYTHING)
    assert script.cost("transforms.decay_weights", plain) == "+0"
    assert script.cost("anchors.init", anchored) == "+4"


def test_state_is_counted_per_parameter_per_group_and_in_all(script):
    count = lambda tx: script.state(tx, "float32")
    assert count(wdjax.decay_weights(0.1, rules=script.EVERYTHING)) == "none"
    assert count(wdjax.decay_weights(0.1, anchor="init", rules=script.EVERYTHING)) == (
        "1 per parameter"
    )
    assert count(wdjax.radial.hyperball(0.1, axes=0)) == "1 per group"
    assert count(wdjax.adaptive.swd(0.1)) == "2 in all"


def public_names():
    """What the namespaces offer: functions and records of their own, without the helpers."""
    for short in ("penalties", "matrices", "gates", "anchors", "adaptive", "radial", "scaling"):
        module = getattr(wdjax, short)
        for name, value in vars(module).items():
            is_own = getattr(value, "__module__", None) == module.__name__
            is_record = isinstance(value, wdjax.penalties.Penalty)
            if not name.startswith("_") and not isinstance(value, type) and (is_own or is_record):
                yield f"{short}.{name}"
    for name in wdjax.__all__:
        home = getattr(getattr(wdjax, name), "__module__", "")
        if home in ("wdjax.schedules", "wdjax.transforms", "wdjax.optimizers", "wdjax.precision"):
            yield f"wdjax.{name}"


HELPERS = {"penalties.penalty_value", "adaptive.with_grad"}
HELPERS |= {"wdjax.decay_budget"}


@pytest.mark.parametrize("name", sorted(set(public_names()) - HELPERS))
def test_every_public_method_has_a_row(name):
    assert sum(line.startswith(f"{name}` |") for line in TABLES) == 1


@pytest.mark.parametrize("line", TABLES, ids=[line.partition("`")[0] for line in TABLES])
def test_every_row_has_a_formula_a_reference_and_a_check(line):
    cells = re.split(r"(?<!\\) \| ", line.removesuffix(" |"))
    assert len(cells) == 6
    assert all(cells[i].strip() for i in (1, 2, 4, 5))


def test_every_oracle_of_the_table_is_a_method(script):
    """A comparison recorded under a name that does not exist would be lost."""
    known = set()
    for section in script.SECTIONS:
        for name, _, _ in script.methods(section):
            known |= {name, name.partition(".")[2]}
    assert set(script.oracles()) <= known


def test_a_difference_beyond_the_tolerance_is_a_failure_that_names_both(agrees):
    with pytest.raises(AssertionError, match=r"l1 is 1.0e\+00 from numpy \d.*; allowed are 0.5"):
        agrees("l1", "numpy", [0.0, 1.0], [0.0, 0.0], atol=0.5)
    with pytest.raises(AssertionError, match=r"l1: \(2,\), numpy .*: \(\)"):
        agrees("l1", "numpy", [0.0, 0.0], 0.0, atol=0.5)


def test_the_figures_are_there():
    figures = re.findall(r"\]\((figures/.+?)\)", PAGE)
    assert len(figures) == 2
    for figure in figures:
        data = (ROOT / figure).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) < 200_000
