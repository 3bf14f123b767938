"""ConvNet: shapes, how it starts, its pooling, and a forward pass in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax.nets import make_convnet
from dasm_jax.nets.layers import average_pool, relu


def shapes(image_shape, n_classes=10, *, width=128, depth=3):
    net = make_convnet(image_shape, n_classes, width=width, depth=depth)
    params = jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0)))
    images = jax.ShapeDtypeStruct((5, *image_shape), jnp.float32)
    assert jax.eval_shape(net.apply, params, images).shape == (5, n_classes)
    return jax.tree.map(
        lambda leaf: leaf.shape, params, is_leaf=lambda x: hasattr(x, "shape")
    )


def size(params):
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, tuple))
    return sum(int(np.prod(shape)) for shape in leaves)


def test_parameters_of_convnet_3_on_cifar10():
    params = shapes((32, 32, 3))
    assert params["conv_0"] == {"kernel": (3, 3, 3, 128), "bias": (128,)}
    assert params["conv_2"] == {"kernel": (3, 3, 128, 128), "bias": (128,)}
    assert params["norm_1"] == {"scale": (128,), "bias": (128,)}
    assert params["classifier"] == {"kernel": (128 * 16, 10), "bias": (10,)}
    assert size(params) == 320_010


@pytest.mark.parametrize(
    ("image_shape", "depth", "pixels"),
    [
        ((28, 28, 1), 3, 16),  # padded to 32: 16, 8, 4
        ((28, 28, 3), 3, 9),  # 14, 7, 3
        ((28, 28, 1), 5, 1),
        ((64, 64, 3), 4, 16),
        ((8, 12, 1), 2, 6),  # 2×3
    ],
)
def test_what_the_classifier_sees(image_shape, depth, pixels):
    params = shapes(image_shape, depth=depth)
    assert params["classifier"]["kernel"] == (128 * pixels, 10)


@pytest.mark.parametrize(
    ("image_shape", "depth", "most"),
    [((28, 28, 1), 6, 5), ((28, 28, 3), 5, 4), ((8, 8, 1), 4, 3), ((32, 7, 3), 3, 2)],
)
def test_too_deep(image_shape, depth, most):
    with pytest.raises(ValueError, match=f"network.depth={depth} .* up to {most}$"):
        make_convnet(image_shape, 10, width=8, depth=depth)
    make_convnet(image_shape, 10, width=8, depth=most)


def test_start_is_uniform_within_one_over_root_fan_in():
    net = make_convnet((8, 8, 3), 10, width=64, depth=2)
    params = jax.tree.map(np.asarray, net.init(jax.random.key(0)))
    fan_in = {"conv_0": 9 * 3, "conv_1": 9 * 64, "classifier": 64 * 4}
    for name, fan in fan_in.items():
        limit = fan**-0.5
        kernel, bias = params[name]["kernel"].ravel(), params[name]["bias"]
        for values in (kernel, bias):
            assert np.abs(values).max() <= limit
            assert np.abs(values).max() > 0.7 * limit
            assert values.min() < 0 < values.max()
        assert kernel.max() > 0.99 * limit
        assert kernel.min() < -0.99 * limit
        assert kernel.std() == pytest.approx(limit / 3**0.5, rel=0.05)
        assert abs(kernel.mean()) < 0.1 * limit
    for layer in ("norm_0", "norm_1"):
        np.testing.assert_array_equal(params[layer]["scale"], 1.0)
        np.testing.assert_array_equal(params[layer]["bias"], 0.0)
    other = net.init(jax.random.key(1))
    assert (other["conv_0"]["kernel"] != params["conv_0"]["kernel"]).all()


def test_average_pool():
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    expected = np.zeros((2, 2, 3, 3))
    for row in range(2):
        for column in range(3):
            block = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected[:, row, column] = block.mean((1, 2))
    np.testing.assert_allclose(
        average_pool(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6
    )


def forward(params, images, padding):
    """One block and the classifier, with loops."""
    kernel, bias = params["conv_0"]["kernel"], params["conv_0"]["bias"]
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(images.astype(np.float64), border)
    count, height, width, _ = padded.shape
    x = np.zeros((count, height - 2, width - 2, len(bias)))
    for row in range(height - 2):
        for column in range(width - 2):
            patch = padded[:, row : row + 3, column : column + 3]
            x[:, row, column] = np.einsum("bhwi,hwio->bo", patch, kernel) + bias
    mean, variance = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    norm = params["norm_0"]
    x = (x - mean) / np.sqrt(variance + 1e-5) * norm["scale"] + norm["bias"]
    x = np.maximum(x, 0)
    rows, columns = (n // 2 * 2 for n in x.shape[1:3])
    x = x[:, :rows, :columns]
    x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    dense = params["classifier"]
    return x.reshape(count, -1) @ dense["kernel"] + dense["bias"]


@pytest.mark.parametrize(("image_shape", "padding"), [((5, 6, 2), 1), ((28, 28, 1), 3)])
def test_forward_pass(image_shape, padding):
    net = make_convnet(image_shape, 4, width=3, depth=1)
    params = jax.tree.map(np.asarray, net.init(jax.random.key(0)))
    numbers = np.random.default_rng(1)
    params["norm_0"] = {
        "scale": np.float32([2, -1, 0.5]),
        "bias": np.float32([1, 0, -1]),
    }
    images = np.float32(numbers.normal(size=(2, *image_shape)))
    expected = forward(params, images, padding)
    logits = jax.jit(net.apply)(params, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


# --- batch norm -----------------------------------------------------------------------


def batch_norm_network(image_shape=(6, 4, 2), depth=2):
    """A network with batch norm, and parameters far from where it starts."""
    net = make_convnet(image_shape, 3, width=4, depth=depth, norm="batch")
    params = jax.tree.map(np.asarray, net.init(jax.random.key(0)))
    numbers = np.random.default_rng(2)
    for name, learned in params["batch_stats"].items():
        norm = params["params"][name]
        for values in (norm, learned):
            values.update((k, np.float32(numbers.normal(size=4))) for k in values)
        learned["var"] = np.float32(numbers.uniform(0.1, 0.5, 4))
    return net, jax.tree.map(jnp.asarray, params)


def some_images(count=3, image_shape=(6, 4, 2)):
    numbers = np.random.default_rng(3)
    return jnp.float32(numbers.normal(size=(count, *image_shape)))


def batch_norm_forward(params, images, *, train):
    """The network in NumPy: logits, and what enters every batch norm."""
    params = jax.tree.map(np.asarray, params)
    weights, learned = params["params"], params["batch_stats"]
    x, entering = np.asarray(images, np.float64), []
    for layer in range(len(learned)):
        conv, norm = weights[f"conv_{layer}"], weights[f"norm_{layer}"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        x = np.einsum("bhwcyx,yxco->bhwo", patches, conv["kernel"]) + conv["bias"]
        entering.append(x)
        mean, var = learned[f"norm_{layer}"]["mean"], learned[f"norm_{layer}"]["var"]
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = (x - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]
        x = np.maximum(x, 0)
        rows, columns = (n // 2 * 2 for n in x.shape[1:3])
        x = x[:, :rows, :columns]
        x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    dense = weights["classifier"]
    return x.reshape(len(x), -1) @ dense["kernel"] + dense["bias"], entering


def test_training_normalises_by_the_batch_and_learns_a_tenth_of_it():
    net, params = batch_norm_network()
    images = some_images()
    logits, statistics = jax.jit(net.train)(params, images)
    expected, entering = batch_norm_forward(params, images, train=True)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert sorted(statistics) == ["norm_0", "norm_1"]
    for layer, x in enumerate(entering):
        old, new = params["batch_stats"][f"norm_{layer}"], statistics[f"norm_{layer}"]
        mean = 0.9 * old["mean"] + 0.1 * x.mean((0, 1, 2))
        # The biased variance; PyTorch learns n / (n − 1) of it, more than rtol apart.
        var = 0.9 * old["var"] + 0.1 * x.var((0, 1, 2))
        np.testing.assert_allclose(new["mean"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(new["var"], var, rtol=2e-5)


def test_applied_it_normalises_by_running_statistics():
    net, params = batch_norm_network()
    images = some_images()
    apply = jax.jit(net.apply)
    logits = apply(params, images)
    expected, _ = batch_norm_forward(params, images, train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    # An image does not notice what else is in the batch, as in training it does.
    others = jnp.concatenate([images[:1], 5 * images[1:] + 1])
    np.testing.assert_allclose(apply(params, others)[0], logits[0], rtol=1e-5)
    trained = [net.train(params, batch)[0][0] for batch in (images, others)]
    assert not np.allclose(*trained, rtol=0.01)


def test_statistics_are_put_in_without_touching_the_weights():
    net, params = batch_norm_network()
    before = jax.tree.map(np.copy, params)
    _, statistics = net.train(params, some_images())
    changed = net.with_statistics(params, statistics)
    assert jax.tree.structure(changed) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], statistics)
    jax.tree.map(np.testing.assert_array_equal, changed["params"], params["params"])
    jax.tree.map(np.testing.assert_array_equal, params, before)
    norms = [p["batch_stats"]["norm_1"]["mean"] for p in (changed, params)]
    assert not np.allclose(*norms)


def test_moments_are_of_what_enters_each_norm():
    net, params = batch_norm_network()
    images = some_images()
    logits, moments = jax.jit(net.moments)(params, images)
    # Later norms see what running statistics, not those of the batch, made of it.
    expected, entering = batch_norm_forward(params, images, train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert len(moments) == len(entering) == 2
    for layer, (found, x) in enumerate(zip(moments, entering)):
        learned = params["batch_stats"][f"norm_{layer}"]
        np.testing.assert_allclose(found.mean, x.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.var, x.var((0, 1, 2)), rtol=1e-4)
        np.testing.assert_array_equal(found.running_mean, learned["mean"])
        np.testing.assert_array_equal(found.running_var, learned["var"])


def test_instance_norm_has_no_statistics():
    net = make_convnet((6, 4, 2), 3, width=4, depth=2, norm="instance")
    params = net.init(jax.random.key(0))
    assert sorted(params) == ["classifier", "conv_0", "conv_1", "norm_0", "norm_1"]
    images = some_images()
    logits = net.apply(params, images)
    for found, nothing in (net.train(params, images), net.moments(params, images)):
        np.testing.assert_array_equal(found, logits)
        assert nothing == ()
    assert net.with_statistics(params, ()) is params


def test_unknown_norm():
    with pytest.raises(ValueError, match=r"network\.norm='weight'.* layer, none$"):
        make_convnet((8, 8, 1), 3, width=4, depth=1, norm="weight")


def test_relu_and_its_derivatives_are_the_usual_ones():
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0, jnp.nan, jnp.inf, -jnp.inf])
    np.testing.assert_array_equal(relu(x), jax.nn.relu(x))
    slope, usual = (jax.vmap(jax.grad(f))(x) for f in (relu, jax.nn.relu))
    np.testing.assert_array_equal(slope, usual)
    assert slope[2] == 0.0

    def curved(f):
        return jax.vmap(jax.grad(jax.grad(lambda x: f(x) ** 3)))(x[:-3])

    np.testing.assert_array_equal(curved(relu), curved(jax.nn.relu))
