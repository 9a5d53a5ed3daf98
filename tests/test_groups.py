"""Lengths and directions of groups against float64, at every size that float32 has."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wdjax import adaptive, bounds, gates, penalties, radial
from wdjax._trees import groups

SIZES = [1e-35, 1e-25, 1e-12, 1.0, 1e19, 1e30, 6e37]


def matrix(size, dtype=np.float32):
    draw = np.random.default_rng(0).normal(size=(6, 5))
    if np.issubdtype(dtype, np.complexfloating):
        draw = draw + 1j * np.random.default_rng(1).normal(size=(6, 5))
    return (draw * size).astype(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("axes", [None, 0, [-1]])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_a_direction_is_right_whatever_the_size(axes, size, dtype):
    z = matrix(size, dtype)
    wide = z.astype(np.result_type(dtype, np.float64)) / size
    along = axes if axes is None else groups.checked_axes(axes, z)
    want = wide / np.sqrt(np.sum(np.abs(wide) ** 2, axis=along, keepdims=True))
    got, exists = groups.direction(z, axes)
    assert np.allclose(got, want, rtol=0, atol=5e-7)
    assert exists.all()


@pytest.mark.parametrize("size", SIZES)
def test_a_length_is_compared_whatever_the_size(size):
    z = np.float32([3, 4]) * np.float32(size)
    compared = [bool(groups.is_longer(z, None, np.float32(f * size))[0]) for f in (4.99, 5.01)]
    assert compared == [True, False]


def test_zeros_have_no_direction_and_no_derivative():
    z = np.float32([[0, 3], [0, 4]])
    turned, exists = groups.direction(z, 0)
    np.testing.assert_allclose(turned, [[0, 0.6], [0, 0.8]], rtol=1e-6)
    assert exists.tolist() == [[False, True]]
    turn = jax.jacobian(lambda z: groups.unit(z, 0))(z)
    assert (turn[:, 0] == 0).all()
    assert np.isfinite(turn).all()
    length = jax.jacobian(lambda z: groups.norm(z, 0).sum())(z)
    np.testing.assert_allclose(length, [[0, 0.6], [0, 0.8]], rtol=1e-6)


def test_derivatives_are_those_of_the_formula(x64):
    z = jnp.asarray(matrix(1.0, np.float64)[:3, :2])
    unit = lambda z: z / jnp.sqrt(jnp.sum(z * z, axis=0, keepdims=True))
    length = lambda z: jnp.sqrt(jnp.sum(z * z))
    for derivative, ours, formula in (
        (jax.jacobian, lambda z: groups.unit(z, 0), unit),
        (jax.hessian, lambda z: groups.norm(z, None)[0, 0], length),
    ):
        got, want = (jax.jit(derivative(f))(z) for f in (ours, formula))
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_an_empty_group_has_no_length():
    empty = np.zeros((0, 3), np.float32)
    assert groups.unit(empty, 0).shape == (0, 3)
    assert groups.norm(empty, 0).tolist() == [[0, 0, 0]]


def test_a_formula_is_traced_once_for_each_shape():
    sizes = [(3, 3)] * 4 + [(2, 5)] * 4
    leaves = [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]
    program = jax.make_jaxpr(lambda leaves: [groups.unit(z, 0) for z in leaves])(leaves).jaxpr
    assert len(program.eqns) == len(leaves)
    assert len({id(line.params["jaxpr"].jaxpr) for line in program.eqns}) == 2


OF_GROUPS = {
    name: function
    for module in (adaptive, bounds, gates, penalties, radial)
    for name, function in vars(module).items()
    if inspect.isfunction(function)
    and function.__module__ == module.__name__
    and not name.startswith("_")
    and "axes" in inspect.signature(function).parameters
}


@pytest.mark.parametrize("name", OF_GROUPS)
@pytest.mark.parametrize("axes", ["a", 1.0, [0, "a"]])
def test_axes_of_another_kind_are_refused_when_a_function_is_built(name, axes):
    parameters = inspect.signature(OF_GROUPS[name]).parameters.values()
    others = {p.name: 0.5 for p in parameters if p.default is p.empty}
    others |= {"bound": bounds.dependent(0.5)} if "bound" in others else {}
    message = r"`axes` must be None, an axis or several axes; got .*static_args"
    with pytest.raises(TypeError, match=message):
        OF_GROUPS[name](**others | {"axes": axes})
