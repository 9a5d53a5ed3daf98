"""The public surface: names, docstrings, and a row in the tables for every method."""

import inspect
import re

import adaptive_cases
import cases
import optax
import pytest
import radial_cases
import schedule_cases

import wdjax
from wdjax import adaptive, gates, matrices, penalties, radial, schedules

NAMESPACES = [
    getattr(wdjax, name) for name in wdjax.__all__ if inspect.ismodule(getattr(wdjax, name))
]


def own_functions(module):
    """What a namespace offers: of a folder all that it lists, of a file what it defines."""
    listed = getattr(module, "__all__", None)
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and name[0] != "_"
        if (name in listed if listed else value.__module__ == module.__name__)
    }


def public():
    for name in wdjax.__all__:
        value = getattr(wdjax, name)
        if inspect.isfunction(value) and value.__module__ != "wdjax.optimizers":
            yield name, value
    yield "decayed", wdjax.decayed
    for module in NAMESPACES:
        for name, value in own_functions(module).items():
            yield f"{module.__name__}.{name}", value


PUBLIC = dict(public())
HELPERS = {"wdjax.anchors.as_anchor", "wdjax.bounds.check_range", "wdjax.penalties.penalty_value"}
documented = pytest.mark.parametrize("name", [name for name in PUBLIC if name not in HELPERS])


def test_all_is_sorted_and_complete():
    assert wdjax.__all__ == sorted(wdjax.__all__)
    assert all(hasattr(wdjax, name) for name in wdjax.__all__)


@documented
def test_a_docstring_has_its_sections_in_order(name):
    doc = inspect.getdoc(PUBLIC[name])
    assert doc, f"{name} has no docstring"
    assert doc.splitlines()[0].endswith("."), "the summary is one line and a sentence"
    found = re.findall(r"^(Args|Returns|Raises|Warns|Example|References):$", doc, re.MULTILINE)
    order = ["Args", "Returns", "Raises", "Warns", "Example", "References"]
    assert found == sorted(found, key=order.index)
    assert {"Returns", "Example"} <= set(found)
    assert ">>>" in doc


@documented
def test_every_argument_is_described(name):
    doc = inspect.getdoc(PUBLIC[name])
    for argument in inspect.signature(PUBLIC[name]).parameters:
        assert re.search(rf"^\s+\**{argument}:", doc, re.MULTILINE), f"{name}: {argument}"


@documented
def test_at_most_three_arguments_go_by_position(name):
    kinds = [p.kind for p in inspect.signature(PUBLIC[name]).parameters.values()]
    assert sum(kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for kind in kinds) <= 3


@pytest.mark.parametrize(
    ("module", "table"), [(penalties, cases.PENALTIES), (matrices, cases.MATRICES)]
)
def test_every_penalty_has_a_row(module, table):
    made = {case.penalty.name.split("(")[0] for case in table.values()}
    constants = {n for n, v in vars(module).items() if isinstance(v, penalties.Penalty)}
    factories = {
        name
        for name, function in own_functions(module).items()
        if function.__annotations__.get("return") is penalties.Penalty
    }
    own = {n for n in constants if not (module is matrices and n in vars(penalties))}
    assert own | factories == made


@pytest.mark.parametrize(
    ("module", "table"), [(adaptive, adaptive_cases.ADAPTIVE), (radial, radial_cases.RADIAL)]
)
def test_every_method_with_a_state_has_a_row(module, table):
    """The verbs are those that return a transformation and are no wrapper of one."""
    verbs = {
        name
        for name, function in own_functions(module).items()
        if function.__annotations__["return"] is optax.GradientTransformationExtraArgs
        and name != "with_grad"
    }
    rows = {name.split(",")[0].split()[0] for name in table}
    assert verbs <= rows


def test_every_gate_has_a_row():
    assert set(own_functions(gates)) == set(cases.GATES)


def test_every_law_and_schedule_has_a_row():
    exported = {
        name
        for name, function in own_functions(schedules).items()
        if name in wdjax.__all__ and function.__annotations__["return"] == schedules.Schedule
    }
    assert exported == set(cases.LAWS) | set(cases.SCHEDULES) | set(schedule_cases.SCHEDULES)
