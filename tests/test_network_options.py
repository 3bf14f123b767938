"""Options of networks: norms, activations, poolings, and one line of text."""

import jax
import numpy as np
import pytest

from dasm_jax.nets import Architecture, make_network, parse_architecture
from dasm_jax.nets.layers import average_pool, max_pool
from tests.test_networks import shapes_of, some_images

# --- options --------------------------------------------------------------------------


def convnet_1(**options):
    """A ConvNet of one block, its parameters and what enters its norm, in NumPy."""
    net = make_network(Architecture("convnet", 8, 1, **options), (6, 4, 2), 3)
    params = jax.tree.map(np.asarray, net.init(jax.random.key(0)))
    numbers = np.random.default_rng(1)
    if "norm_0" in params:
        params["norm_0"] = {
            name: np.float32(numbers.normal(size=values.shape))
            for name, values in params["norm_0"].items()
        }
    images = some_images((6, 4, 2), 3)
    padded = np.pad(np.asarray(images, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    conv = params["conv_0"]
    x = np.einsum("bhwcyx,yxco->bhwo", patches, conv["kernel"]) + conv["bias"]
    return net, params, images, x


def averaged(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def embedding(net, params, images):
    return jax.jit(net.layers)(params, images)[-1]


@pytest.mark.parametrize("norm", ["group", "layer", "none"])
def test_norms(norm):
    net, params, images, x = convnet_1(norm=norm)
    if norm == "group":  # four groups of two channels
        groups = x.reshape(3, 6, 4, 4, 2)
        mean, var = (f((1, 2, 4), keepdims=True) for f in (groups.mean, groups.var))
        x = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
        assert params["norm_0"]["scale"].shape == (8,)
    elif norm == "layer":  # the whole image, and weights for every value
        mean, var = (f((1, 2, 3), keepdims=True) for f in (x.mean, x.var))
        x = (x - mean) / np.sqrt(var + 1e-5)
        assert params["norm_0"]["scale"].shape == (6, 4, 8)
    if norm == "none":
        assert "norm_0" not in params
    else:
        x = x * params["norm_0"]["scale"] + params["norm_0"]["bias"]
    expected = averaged(np.maximum(x, 0))
    found = embedding(net, params, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", lambda x: np.where(x > 0, x, 0)),
        ("leaky", lambda x: np.where(x > 0, x, 0.01 * x)),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    ],
)
def test_activations(activation, function):
    net, params, images, x = convnet_1(norm="none", activation=activation)
    found = embedding(net, params, images)
    np.testing.assert_allclose(found, averaged(function(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["average", "max", "none"])
def test_poolings(pooling):
    net, params, images, x = convnet_1(norm="none", pooling=pooling)
    x = np.maximum(x, 0)
    if pooling == "average":
        x = averaged(x)
    elif pooling == "max":
        x = x.reshape(3, 3, 2, 2, 2, 8).max((2, 4))
    np.testing.assert_allclose(embedding(net, params, images), x, rtol=1e-4, atol=1e-5)
    assert params["classifier"]["kernel"].shape == (x[0].size, 3)


def test_pools_of_other_sizes_drop_the_rest():
    x = some_images((9, 7, 2))
    blocks = np.asarray(x)[:, :8, :4].reshape(2, 2, 4, 1, 4, 2)
    for pool, expected in [
        (average_pool, blocks.mean((2, 4))),
        (max_pool, blocks.max((2, 4))),
    ]:
        np.testing.assert_allclose(pool(x, 4), expected, rtol=1e-5, atol=1e-6)


def test_without_pooling_any_depth_fits():
    net = make_network(Architecture("convnet", 4, 5, pooling="none"), (8, 8, 1), 3)
    assert shapes_of(net)["classifier"]["kernel"].shape == (8 * 8 * 4, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet19"}, "unknown network.name='resnet19'; known: convnet, "),
        ({"norm": "weight"}, "unknown network.norm='weight'; known: instance, "),
        ({"activation": "tanh"}, "unknown network.activation='tanh'; known: relu, "),
        ({"pooling": "avg"}, "unknown network.pooling='avg'; known: average, "),
        (
            {"norm": "group", "width": 6},
            "network.width=6 must be a multiple of 4 for n",
        ),
        ({"name": "alexnet", "width": 3}, "network.width=3 .* of 2 for alexnet"),
        ({"name": "vit", "width": 64}, "network.width=64 .* of 3 for vit"),
        ({"name": "lenet", "width": 8}, "network.width=8 .* lenet comes in one size"),
        ({"name": "mlp", "norm": "batch"}, "network.norm='batch' .* mlp, which has no"),
    ],
)
def test_choices_that_are_not_offered(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_network(Architecture(**changes), (32, 32, 3), 3)


# --- one line of text -----------------------------------------------------------------


def test_parsed():
    base = Architecture("convnet", 32, 2, "group", "leaky", "max")
    for text, expected in {
        "convnet": base,
        "convnet/batch": base._replace(norm="batch"),
        "convnet/16": base._replace(width=16),
        "convnet/none/8": base._replace(norm="none", width=8),
        "resnet18": Architecture("resnet18", 64, norm="instance"),
        "resnet18/batch": Architecture("resnet18", 64, norm="batch"),
        "resnet10/instance/16": Architecture("resnet10", 16, norm="instance"),
        "vgg11/16": Architecture("vgg11", 16, norm="instance"),
        "densenet": Architecture("densenet", 12, norm="batch"),
        "densenet/instance": Architecture("densenet", 12, norm="instance"),
        "alexnet": Architecture("alexnet", 128, norm="none"),
        "lenet": Architecture("lenet", 0, norm="none"),
        "vit/96": Architecture("vit", 96, norm="none"),
    }.items():
        assert parse_architecture(text, base) == expected


def test_parsed_for_a_run_with_another_network():
    base = Architecture("resnet_ap10", 16, norm="group")
    assert parse_architecture("resnet_ap10", base) == base
    assert parse_architecture("resnet_ap10/32", base) == base._replace(width=32)
    assert parse_architecture("resnet10", base).width == 64
    assert parse_architecture("convnet", base) == Architecture(width=128)
    assert parse_architecture("convnet") == Architecture(width=128)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown network '' in ''; known: alexnet, convnet, "),
        ("ResNet18", "unknown network 'ResNet18'"),
        ("resnet18/bach", "unknown norm 'bach' in 'resnet18/bach'; known: instance, "),
        ("resnet18/", "unknown norm ''"),
        ("resnet18/batch/", "'resnet18/batch/' is not 'name', "),
        ("resnet18/16/batch", "'resnet18/16/batch' is not 'name', "),
        ("resnet18/batch/0", "'resnet18/batch/0' is not 'name', "),
        ("resnet18/batch/-4", "'resnet18/batch/-4' is not 'name', "),
        ("vit/batch", "vit has no norm to choose; write 'vit'"),
        ("lenet/8", "'lenet/8': network.width=8 cannot be had: lenet comes in one"),
        ("alexnet/5", "'alexnet/5': network.width=5 must be a multiple of 2"),
        ("vgg11/group/6", "'vgg11/group/6': network.width=6 must be a multiple of 4"),
        ("mlp/4097", "'mlp/4097': network.width=4097 is too large; it must be at most"),
        (
            "mlp/99999999999",
            "'mlp/99999999999': network.width=99999999999 is too large",
        ),
    ],
)
def test_not_parsed(text, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        parse_architecture(text)
    assert "\n" not in str(caught.value)
