"""Distances in NumPy, exact second derivatives, and networks from any library."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dasm_jax import matching
from dasm_jax.matching import (
    LAYERS,
    METRICS,
    every_parameter,
    make_gradient_matcher,
)
from dasm_jax.types import Batch

# --- metrics --------------------------------------------------------------------------


def flat(x):
    return np.asarray(x, np.float64).reshape(-1, x.shape[-1])


def cosine(x, y):
    total = 0.0
    for a, b in zip(flat(x).T, flat(y).T):
        total += 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-6)
    return total


EXPECTED = {
    "mse": lambda x, y: ((flat(x) - flat(y)) ** 2).sum(),
    "l1": lambda x, y: np.abs(flat(x) - flat(y)).sum(),
    "l1_mean": lambda x, y: np.abs(flat(x) - flat(y)).sum() / len(flat(x)),
    "cos": cosine,
}


@pytest.mark.parametrize("name", sorted(METRICS))
@pytest.mark.parametrize("shape", [(3, 3, 2, 4), (5, 4), (4,)], ids=str)
def test_metric(name, shape):
    x, y = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    value = METRICS[name](jnp.asarray(x), jnp.asarray(y))
    assert float(value) == pytest.approx(EXPECTED[name](x, y), rel=1e-5)


def test_cosine_of_zero_vectors():
    """Channels: both zero, only the target zero, only ours zero, neither."""
    x = jnp.array([[0.0, 1.0, 0.0, 1.0], [0.0, 2.0, 0.0, 0.0]])
    y = jnp.array([[0.0, 0.0, 3.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    cos = matching.cosine_distance
    assert float(cos(x, y)) == pytest.approx(3.0, abs=2e-6)
    gradient = jax.grad(cos)(x, y)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:, :2], 0.0)
    # At our zero the slope is −y/(|x||y| + 1e-6) with |x| → 0.
    np.testing.assert_allclose(gradient[:, 2], [-3e6, -1e6], rtol=1e-5)
    for second in (jax.jacfwd(jax.grad(cos)), jax.jacrev(jax.grad(cos))):
        assert np.isfinite(jax.jit(second)(x, y)).all()


def test_layers():
    leaves = {"k": jnp.ones((3, 3, 1, 2)), "b": jnp.ones(2), "d": jnp.ones((4, 2))}
    shapes = {
        name: [x.shape for x in choose(leaves)] for name, choose in LAYERS.items()
    }
    assert shapes == {
        "conv": [(3, 3, 1, 2)],
        "kernels": [(4, 2), (3, 3, 1, 2)],
        "all": [(2,), (4, 2), (3, 3, 1, 2)],
    }


# --- derivatives ----------------------------------------------------------------------


def mlp(params, images):
    hidden = jnp.tanh(images.reshape(len(images), -1) @ params["w"] + params["b"][None])
    return hidden @ params["v"]


def mlp_params(seed):
    numbers = np.random.default_rng(seed)
    shapes = {"w": (12, 6), "b": (6,), "v": (6, 3)}
    return {name: jnp.asarray(numbers.normal(size=s)) for name, s in shapes.items()}


def batch(count, seed, shape=(2, 3, 2)):
    numbers = np.random.default_rng(seed)
    return Batch(
        jnp.asarray(numbers.normal(size=(count, *shape))),
        jnp.asarray(numbers.integers(0, 3, count), jnp.int32),
        jnp.asarray(numbers.uniform(0.2, 1.0, count)),
    )


def plain_distance(name, apply_fn, params, real, synthetic):
    """Reverse over reverse, with nothing from the module."""

    def loss(params, images, labels, weights):
        log_p = jax.nn.log_softmax(apply_fn(params, images))
        own = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
        return -(own * weights).sum() / weights.sum()

    def metric(x, y):
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1])
        if name == "mse":
            return ((x - y) ** 2).sum()
        norms = jnp.sqrt((x**2).sum(0)) * jnp.sqrt((y**2).sum(0))
        return (1 - (x * y).sum(0) / (norms + 1e-6)).sum()

    target = jax.lax.stop_gradient(jax.grad(loss)(params, *real))
    ours = jax.grad(loss)(params, *synthetic)
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(target))
    return sum(metric(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", ["mse", "cos"])
def test_derivatives_equal_plain_double_backward(name):
    with jax.enable_x64(True):
        matcher = make_gradient_matcher(mlp, METRICS[name], every_parameter)
        params, real, synthetic = mlp_params(0), batch(5, 1), batch(4, 2)

        def ours(params, images, weights):
            target = matcher.target(params, real)
            part = Batch(images, synthetic.labels, weights)
            return matcher.distance(params, target, part)

        def plain(params, images, weights):
            part = Batch(images, synthetic.labels, weights)
            return plain_distance(name, mlp, params, real, part)

        args = (params, synthetic.images, synthetic.weights)
        value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(*args)
        expected, wanted = jax.jit(jax.value_and_grad(plain, (0, 1, 2)))(*args)
        assert value.dtype == jnp.float64
        assert float(value) == pytest.approx(float(expected), rel=1e-12)
        assert jax.tree.structure(gradients) == jax.tree.structure(wanted)
        for got, want in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted)):
            assert np.abs(want).max() > 1e-3
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_weight_zero_leaves_an_image_out():
    matcher = make_gradient_matcher(mlp, layers=every_parameter)
    params, real, synthetic = mlp_params(0), batch(5, 1), batch(4, 2)
    left_out = synthetic._replace(weights=synthetic.weights.at[2:].set(0.0))
    shorter = Batch(*(field[:2] for field in synthetic))

    @jax.jit
    @jax.value_and_grad
    def distance(images, part):
        target = matcher.target(params, real)
        return matcher.distance(params, target, part._replace(images=images))

    value, gradient = distance(left_out.images, left_out)
    expected, _ = distance(shorter.images, shorter)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert (np.abs(gradient).max((1, 2, 3)) > 0).tolist() == [True, True, False, False]


def test_target_is_a_constant():
    matcher = make_gradient_matcher(mlp, layers=every_parameter)
    real = batch(5, 1)

    def total(params, images):
        target = matcher.target(params, real._replace(images=images))
        return sum(jnp.abs(leaf).sum() for leaf in target)

    differentiate = jax.jit(jax.value_and_grad(total, (0, 1)))
    value, gradients = differentiate(mlp_params(0), real.images)
    assert value > 0
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, 0.0)


def test_network_without_convolution():
    matcher = make_gradient_matcher(mlp)
    params, part = mlp_params(0), batch(3, 1)
    with pytest.raises(ValueError, match=r"no convolution kernel.*LAYERS\['all'\]"):
        jax.eval_shape(matcher.distance, params, [], part)


# --- other libraries ------------------------------------------------------------------


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(4, (3, 3), name="conv")(x))
        return nn.Dense(3, name="dense")(x.reshape(len(x), -1))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(48, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.tanh(self.conv(x))
        return self.dense(x.reshape(len(x), -1))


def plain_net(params, images):
    numbers = ("NHWC", "HWIO", "NHWC")
    kernel, bias = params["conv"]["kernel"], params["conv"]["bias"]
    x = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )
    x = jnp.tanh(x + bias[None, None, None, :]).reshape(len(images), -1)
    return x @ params["dense"]["kernel"] + params["dense"]["bias"][None]


def linen():
    net, images = LinenNet(), jnp.zeros((1, 3, 4, 2))
    params = jax.jit(net.init)(jax.random.key(0), images)["params"]
    return params, params, lambda p, x: net.apply({"params": p}, x)


def flax_nnx():
    definition, state = nnx.split(NnxNet(nnx.Rngs(0)))
    plain = nnx.to_pure_dict(state)
    return state, plain, lambda s, x: nnx.merge(definition, s)(x)


@pytest.mark.parametrize(("library", "layers"), [(linen, "conv"), (flax_nnx, "all")])
def test_networks_of_other_libraries(library, layers):
    params, plain_params, apply_fn = library()
    real, synthetic = batch(4, 1, (3, 4, 2)), batch(3, 2, (3, 4, 2))

    def distance_and_gradient(apply_fn, params):
        matcher = make_gradient_matcher(apply_fn, layers=LAYERS[layers])

        @jax.jit
        @jax.value_and_grad
        def distance(images):
            target = matcher.target(params, real)
            return matcher.distance(params, target, synthetic._replace(images=images))

        return distance(synthetic.images)

    value, gradient = distance_and_gradient(apply_fn, params)
    expected, wanted = distance_and_gradient(plain_net, plain_params)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6)
    assert np.abs(gradient).max() > 1e-3


# --- transformations ------------------------------------------------------------------


def test_jit_vmap_and_scan():
    matcher = make_gradient_matcher(mlp, METRICS["cos"], every_parameter)
    with jax.enable_x64(True):
        real, synthetic = batch(5, 1), batch(4, 2)
        nets = [mlp_params(seed) for seed in range(3)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *nets)

        def step(images, params):
            def distance(images):
                part = synthetic._replace(images=images)
                return matcher.distance(params, matcher.target(params, real), part)

            value, gradient = jax.value_and_grad(distance)(images)
            return images - 0.1 * gradient, value

        compiled, start = jax.jit(step), synthetic.images
        # One network after the other, the images moving on.
        images, distances = start, []
        for params in nets:
            images, value = compiled(images, params)
            distances.append(value)
        last, values = jax.lax.scan(step, start, stacked)
        np.testing.assert_allclose(values, distances, rtol=1e-9)
        np.testing.assert_allclose(last, images, rtol=1e-9)
        # All networks at once, from the same images.
        moved, values = jax.jit(jax.vmap(step, (None, 0)))(start, stacked)
        for i, params in enumerate(nets):
            images, value = compiled(start, params)
            assert float(values[i]) == pytest.approx(float(value), rel=1e-9)
            np.testing.assert_allclose(moved[i], images, rtol=1e-9)
