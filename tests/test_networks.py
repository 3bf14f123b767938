"""All networks: published sizes, batch statistics, second-order gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import matching, nets
from dasm_jax.errors import UserError
from dasm_jax.experiments import recover
from dasm_jax.matching import make_gradient_matcher
from dasm_jax.nets import NETS, densenet, make_network, parse_architecture, vit
from dasm_jax.nets.layers import average_pool
from dasm_jax.types import Batch
from tests.small import slow_but, small_problem

# Small enough to be compiled and run by the dozen.
SMALL = {
    "convnet": "convnet/4",
    "lenet": "lenet",
    "mlp": "mlp/8",
    "alexnet": "alexnet/4",
    "vgg11": "vgg11/4",
    "resnet10": "resnet10/4",
    "resnet18": "resnet18/4",
    "resnet_ap10": "resnet_ap10/4",
    "densenet": "densenet/4",
    "vit": "vit/12",
}
SHAPES = [(28, 28, 1), (32, 32, 3)]


@pytest.fixture
def few_layers(monkeypatch):
    """Deep networks with few layers, which are traced in no time.

    All kinds of layers and changes of size stay; whole ones are counted below.
    """
    make_network.cache_clear()
    monkeypatch.setattr(densenet, "STAGES", (2, 1, 1, 1))
    monkeypatch.setattr(vit, "DEPTH", 2)
    yield
    make_network.cache_clear()


def network(text, image_shape=(16, 16, 3), n_classes=3):
    return make_network(parse_architecture(text), image_shape, n_classes)


def shapes_of(net):
    return jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0)))


def size(params):
    if "batch_stats" in params:  # what is counted are the weights
        params = params["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def some_images(image_shape, count=2, seed=3):
    numbers = np.random.default_rng(seed)
    return jnp.float32(numbers.normal(size=(count, *image_shape)))


# --- published sizes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "image_shape", "n_classes", "expected"),
    [
        ("convnet", (32, 32, 3), 10, 320_010),
        ("lenet", (32, 32, 3), 10, 62_006),
        ("lenet", (28, 28, 1), 10, 61_706),
        ("mlp", (32, 32, 3), 10, 411_146),
        ("alexnet", (32, 32, 3), 10, 1_872_202),
        ("vgg11/batch", (32, 32, 3), 10, 9_231_114),
        ("resnet18/batch", (32, 32, 3), 10, 11_173_962),
        ("resnet18/batch", (224, 224, 3), 1000, 11_689_512),
        ("resnet10/batch", (32, 32, 3), 10, 4_903_242),
        ("resnet_ap10", (224, 224, 3), 10, 4_910_922),
        ("densenet", (32, 32, 3), 10, 1_000_618),
        ("vit", (32, 32, 3), 10, 5_362_762),
    ],
)
def test_parameters_as_published(text, image_shape, n_classes, expected):
    assert size(shapes_of(network(text, image_shape, n_classes))) == expected


def test_every_network_is_counted():
    assert list(SMALL) == list(NETS)
    assert {*nets.PUBLISHED_WIDTHS} == {*NETS} - {"lenet"}
    assert {*nets.CUSTOMARY_NORMS} < {*NETS}


# --- what every network does ----------------------------------------------------------


def check_last_layer(name, image_shape):
    net = network(SMALL[name], image_shape)
    params = net.init(jax.random.key(0))
    images = some_images(image_shape)
    logits, layers = jax.jit(lambda p, x: (net.apply(p, x), net.layers(p, x)))(
        params, images
    )
    assert logits.shape == (2, 3)
    assert logits.dtype == jnp.float32
    assert len(layers) >= 2
    assert all(layer.shape[0] == 2 for layer in layers)
    dense = params.get("params", params)["classifier"]
    embedding = layers[-1].reshape(2, -1)
    expected = embedding @ dense["kernel"] + dense["bias"][None]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    # Images make a difference.
    assert np.abs(logits[0] - logits[1]).max() > 1e-6


@pytest.mark.usefixtures("few_layers")
@pytest.mark.parametrize("image_shape", slow_but(SHAPES, SHAPES[0]))
@pytest.mark.parametrize("name", slow_but(NETS, "convnet", "resnet_ap10", "vit"))
def test_last_layer_is_what_the_classifier_sees(name, image_shape):
    check_last_layer(name, image_shape)


@pytest.mark.slow
@pytest.mark.parametrize("image_shape", SHAPES)
@pytest.mark.parametrize("name", ["densenet", "vit"])
def test_last_layer_of_all_layers_is_what_the_classifier_sees(name, image_shape):
    check_last_layer(name, image_shape)


@pytest.mark.usefixtures("few_layers")
@pytest.mark.parametrize("side", [8, 9, 64, 65, 96, 129, 224])
@pytest.mark.parametrize("name", NETS)
def test_every_size_works_or_is_refused(name, side):
    try:
        net = network(SMALL[name], (side, side, 3))
    except ValueError as refusal:
        net, message = None, str(refusal)
    if net is None:
        assert side < 32
        assert message.startswith("network.")
        return
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    assert jax.eval_shape(net.apply, shapes_of(net), images).shape == (2, 3)


@pytest.mark.parametrize(
    ("text", "side", "message"),
    [
        ("lenet", 13, "network.name='lenet' needs images of at least 14 px, not 13x13"),
        ("resnet_ap10/batch", 7, "network.name='resnet_ap10' needs .* 8 px"),
        ("resnet_ap10", 8, "network.norm='instance' leaves nothing .* 8x8 images"),
        ("vgg11", 28, "network.norm='instance' leaves nothing .*vgg11.* 28x28 images"),
        ("convnet", 7, "network.depth=3 halves 7x7 images to nothing"),
    ],
)
def test_too_small(text, side, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        network(text, (side, side, 3))


def test_smallest():
    for text, side in [("lenet", 14), ("resnet_ap10/batch/4", 8), ("resnet10/4", 9)]:
        net = network(text, (side, side, 3))
        assert net.layers  # made
    images = some_images((14, 14, 3))
    net = network("lenet", (14, 14, 3))
    logits = jax.jit(net.apply)(net.init(jax.random.key(0)), images)
    assert np.isfinite(logits).all()


# --- batch norm in blocks -------------------------------------------------------------


def check_running_statistics(name):
    net = network(f"{name}/batch/4")
    params = net.init(jax.random.key(0))
    images = some_images((16, 16, 3), 4)
    train, apply = jax.jit(net.train), jax.jit(net.apply)
    before = jax.tree.map(np.copy, params)
    logits, statistics = train(params, images)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    expected = params["batch_stats"]
    assert jax.tree.structure(statistics) == jax.tree.structure(expected)
    for new, old in zip(jax.tree.leaves(statistics), jax.tree.leaves(expected)):
        assert np.any(new != old)

    # Learned until they are those of this batch, evaluation gives what training does.
    def learn(params, _):
        _, statistics = net.train(params, images)
        return net.with_statistics(params, statistics), None

    learned, _ = jax.jit(lambda p: jax.lax.scan(learn, p, length=150))(params)
    np.testing.assert_allclose(apply(learned, images), logits, rtol=1e-3, atol=1e-4)
    assert not np.allclose(apply(params, images), logits, rtol=1e-3, atol=1e-4)
    for moments in jax.jit(net.moments)(learned, images)[1]:
        for found, running in ((moments.mean, moments.running_mean),
                               (moments.var, moments.running_var)):  # fmt: skip
            np.testing.assert_allclose(found, running, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("few_layers")
@pytest.mark.parametrize(
    "name", slow_but(["vgg11", "resnet10", "resnet_ap10", "densenet"], "resnet_ap10")
)
def test_running_statistics(name):
    check_running_statistics(name)


@pytest.mark.slow
def test_running_statistics_of_all_layers():
    check_running_statistics("densenet")


@pytest.mark.slow
def test_many_networks_at_once():
    net = network("resnet10/batch/4")
    keys = jax.random.split(jax.random.key(0), 2)
    stacked = jax.jit(jax.vmap(net.init))(keys)
    images = some_images((16, 16, 3), 4)
    logits, statistics = jax.jit(jax.vmap(net.train, (0, None)))(stacked, images)
    train = jax.jit(net.train)
    for index in range(2):
        params = jax.tree.map(lambda leaf, i=index: leaf[i], stacked)
        alone, learned = train(params, images)
        np.testing.assert_allclose(logits[index], alone, rtol=1e-3, atol=1e-4)
        jax.tree.map(
            lambda many, one, i=index: np.testing.assert_allclose(
                many[i], one, rtol=1e-3, atol=1e-4
            ),
            statistics,
            learned,
        )


# --- residual blocks ------------------------------------------------------------------


def test_resnet_ap_pools_where_resnet_strides():
    """Kernels alike; a stride keeps one pixel of four, a pool their mean."""
    strided, pooled = (network(f"{n}/none/4") for n in ("resnet10", "resnet_ap10"))
    params = pooled.init(jax.random.key(0))
    like = (jax.tree.map(jnp.shape, shapes_of(net)) for net in (strided, pooled))
    assert next(like) == next(like)
    images = some_images((16, 16, 3))
    before, after = jax.jit(pooled.layers)(params, images)[1:3]
    assert (before.shape, after.shape) == ((2, 16, 16, 4), (2, 8, 8, 8))
    block = params["stage_1_block_0"]

    def conv(x, name, stride=1):
        kernel = block[name]["kernel"]
        pad = kernel.shape[0] // 2
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    relu = jax.nn.relu
    y = conv(average_pool(relu(conv(before, "conv_0"))), "conv_1")
    shortcut = average_pool(conv(before, "conv_shortcut"))
    np.testing.assert_allclose(after, relu(y + shortcut), rtol=1e-4, atol=1e-5)
    before, after = jax.jit(strided.layers)(params, images)[1:3]
    y = conv(relu(conv(before, "conv_0", 2)), "conv_1")
    shortcut = conv(before, "conv_shortcut", 2)
    np.testing.assert_allclose(after, relu(y + shortcut), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet10", "resnet_ap10"])
@pytest.mark.parametrize(("side", "after"), [(64, 64), (65, 33), (128, 64), (224, 56)])
def test_stem_shrinks_large_images(name, side, after):
    net = network(f"{name}/4", (side, side, 3))
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    stem = jax.eval_shape(net.layers, shapes_of(net), images)[0]
    if name == "resnet_ap10":
        after = {33: 32}.get(after, after)  # a pool drops the odd column
    elif side in (65, 128):
        after = -(-side // 2)
    assert stem.shape == (2, after, after, 4)


# --- matching -------------------------------------------------------------------------


def check_pixel_gradients(name, metric):
    net = network(f"{name}/instance/4", (32, 32, 3))
    matcher = make_gradient_matcher(net.apply, matching.METRICS[metric])
    params = net.init(jax.random.key(0))
    labels, weights = jnp.zeros(2, jnp.int32), jnp.ones(2)
    real, synthetic = (
        Batch(some_images((32, 32, 3), seed=seed), labels, weights) for seed in (1, 2)
    )

    @jax.jit
    def pixel_gradient(params, real, synthetic):
        target = matcher.target(params, real)

        def distance(images):
            return matcher.distance(params, target, synthetic._replace(images=images))

        return jax.value_and_grad(distance)(synthetic.images)

    value, gradient = pixel_gradient(params, real, synthetic)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0
    same, _ = pixel_gradient(params, real, real)
    assert same < 0.02 * value  # cos has 1e-6 in its denominator


@pytest.mark.usefixtures("few_layers")
@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("resnet_ap10", "l1"),
        pytest.param("resnet_ap10", "cos", marks=pytest.mark.slow),
        pytest.param("resnet10", "l1", marks=pytest.mark.slow),
        pytest.param("vgg11", "l1", marks=pytest.mark.slow),
        pytest.param("densenet", "l1", marks=pytest.mark.slow),
    ],
)
def test_gradients_of_pixels_are_finite(name, metric):
    check_pixel_gradients(name, metric)


@pytest.mark.slow
def test_gradients_of_pixels_through_all_layers_are_finite():
    check_pixel_gradients("densenet", "l1")


# --- in a run -------------------------------------------------------------------------


def test_images_too_small_for_the_network_of_a_run():
    message = r"^config\.network\.name='lenet' needs images of at least 14 px, not 8x8$"
    with pytest.raises(UserError, match=message):
        small_problem(network__name="lenet", network__width=0)


def test_recovery_needs_batch_norms():
    problem = small_problem(network__name="mlp", matcher__name="dm")
    with pytest.raises(UserError, match=r"^config\.network\.norm='batch' .* mlp"):
        recover._teach(problem)
