"""Every golden array recorded from the public IDC implementation."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import augment, matching
from dasm_jax.image_optimizer import make_image_optimizer
from dasm_jax.nets import make_convnet
from dasm_jax.parameterization import make_parameterization
from dasm_jax.types import Batch

FOLDER = Path(
    os.environ.get(
        "DASM_PARITY_DIR", Path(__file__).parent.parent.parent / "shared" / "parity"
    )
)
FILES = sorted(path.name for path in FOLDER.glob("*.npz"))
if not FILES:
    pytest.skip(
        f"no golden arrays in {FOLDER}; set DASM_PARITY_DIR", allow_module_level=True
    )


def files(prefix):
    return pytest.mark.parametrize("name", [f for f in FILES if f.startswith(prefix)])


def load(name):
    with np.load(FOLDER / name) as arrays:
        return {key: arrays[key] for key in arrays.files}


def nhwc(images):
    return jnp.asarray(np.moveaxis(images, -3, -1))


def nchw(images):
    return np.moveaxis(np.asarray(images), -1, -3)


def close(actual, desired, rtol):
    """Relative to each array's scale, where that is above rounding level.

    A bias ahead of a norm has gradient zero; what was recorded for it is noise of up to
    1e-6, different on every machine.
    """
    scale = np.abs(desired).max()
    noise = 3e-6 if scale < 2e-6 else 0.0
    np.testing.assert_allclose(actual, desired, rtol=rtol, atol=rtol * scale + noise)


def from_torch(arrays, prefix):
    """Parameters of the public ConvNet as ours: OIHW → HWIO, CHW flatten → HWC."""
    params, depth = {}, 0
    while f"{prefix}/layers.conv.{depth}.weight" in arrays:
        conv, norm = f"{prefix}/layers.conv.{depth}", f"{prefix}/layers.norm.{depth}"
        params[f"conv_{depth}"] = {
            "kernel": jnp.asarray(arrays[f"{conv}.weight"].transpose(2, 3, 1, 0)),
            "bias": jnp.asarray(arrays[f"{conv}.bias"]),
        }
        params[f"norm_{depth}"] = {
            "scale": jnp.asarray(arrays[f"{norm}.weight"]),
            "bias": jnp.asarray(arrays[f"{norm}.bias"]),
        }
        depth += 1
    weight = arrays[f"{prefix}/classifier.weight"]
    width = len(params["conv_0"]["bias"])
    side = round((weight.shape[1] / width) ** 0.5)
    dense = weight.reshape(-1, width, side, side).transpose(2, 3, 1, 0)
    params["classifier"] = {
        "kernel": jnp.asarray(dense.reshape(-1, len(weight))),
        "bias": jnp.asarray(arrays[f"{prefix}/classifier.bias"]),
    }
    return params


def convnet_for(images, params):
    return make_convnet(
        images.shape[1:],
        len(params["classifier"]["bias"]),
        width=len(params["conv_0"]["bias"]),
        depth=3,
    )


def test_every_golden_file_is_checked():
    known = ("convnet_", "match_", "decode_", "augment_", "image_sgd_", "cutmix_boxes")
    assert [name for name in FILES if not name.startswith(known)] == []


@files("convnet_")
def test_convnet(name):
    arrays = load(name)
    params = from_torch(arrays, "params")
    images, labels = nhwc(arrays["images_nchw"]), jnp.asarray(arrays["labels"], int)
    net = convnet_for(images, params)
    close(net.apply(params, images), arrays["logits"], 1e-4)

    def loss_fn(params):
        ones = jnp.ones(len(labels))
        return matching.mean_cross_entropy(net.apply, params, images, labels, ones)

    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params)
    close(loss, arrays["loss"], 1e-4)
    expected = from_torch(arrays, "grads")
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected)):
        close(ours, theirs, 1e-4)


@files("match_")
def test_matching_distance_and_pixel_gradient(name):
    arrays = load(name)
    params = from_torch(arrays, "params")
    real, synthetic = nhwc(arrays["real_nchw"]), nhwc(arrays["syn_nchw"])
    metric = name.removesuffix(".npz").split("_", 2)[2]
    layers = "all" if metric.endswith("_all") else "conv"
    matcher = matching.make_gradient_matcher(
        convnet_for(real, params).apply,
        matching.METRICS[metric.removesuffix("_all")],
        matching.LAYERS[layers],
    )

    def batch(images):
        count = len(images)
        labels = jnp.full(count, int(arrays["label"]), jnp.int32)
        return Batch(images, labels, jnp.ones(count))

    def distance(images):
        return matcher.distance(
            params, matcher.target(params, batch(real)), batch(images)
        )

    value, grad = jax.jit(jax.value_and_grad(distance))(synthetic)
    close(value, arrays["distance"], 1e-4)
    close(nchw(grad), arrays["dsyn_nchw"], 1e-3)


@files("decode_")
def test_decode(name):
    arrays = load(name)
    _, size, factor, kind = name.removesuffix(".npz").split("_")
    pixels = nhwc(arrays["pixels_nchw"])
    parameterization = make_parameterization(
        kind, int(factor[1:]), (int(size), int(size)), bound=int(arrays["bound"])
    )
    formation = parameterization.tiles(len(pixels))
    np.testing.assert_array_equal(formation.sources, arrays["source_index"])
    images = parameterization.decode(pixels, formation)
    close(nchw(images), arrays["images_nchw"], 1e-5)


@files("augment_")
def test_augmentation_and_its_pull_back(name):
    arrays = load(name)
    op = name.split("_")[1]
    draws = [arrays[key] for key in sorted(arrays) if key.startswith("draw")]
    kind = jnp.int32 if draws[0].dtype.kind == "i" else jnp.float32
    draw = jnp.stack([jnp.asarray(d, kind) for d in draws])
    draw = {op: draw[0] if len(draws) == 1 else draw}

    def apply(images):
        return augment.augment_shared(images, draw, (op,))

    images, pull_back = jax.vjp(apply, nhwc(arrays["images_nchw"]))
    close(nchw(images), arrays["output_nchw"], 1e-4)
    (grad,) = pull_back(nhwc(arrays["cotangent_nchw"]))
    close(nchw(grad), arrays["dimages_nchw"], 1e-4)


@files("image_sgd_")
def test_image_optimiser_takes_gradients_where_the_public_loop_does(name):
    arrays = load(name)
    real = nhwc(arrays["real_nchw"])  # [step, class, B, H, W, ch]
    steps, n_classes = real.shape[:2]
    metric = name.removesuffix(".npz").split("_")[-1]
    nets = [from_torch(arrays, f"params{i}") for i in range(2)]
    net = convnet_for(real[0, 0], nets[0])
    matcher = matching.make_gradient_matcher(net.apply, matching.METRICS[metric])
    start = nhwc(arrays["start_nchw"])
    pixels = start.reshape(n_classes, -1, *start.shape[1:])
    optimizer = make_image_optimizer(
        float(arrays["lr"]), float(arrays["momentum"]), n_classes
    )
    state = optimizer.init(pixels)

    @jax.jit
    @jax.value_and_grad
    def distance_and_gradient(pixels, params, real, label):
        def batch(images):
            count = len(images)
            return Batch(images, jnp.full(count, label), jnp.ones(count))

        return matcher.distance(
            params, matcher.target(params, batch(real)), batch(pixels)
        )

    for step in range(steps):
        params = nets[int(arrays["net_of_step"][step])]
        close(nchw(pixels), arrays["pixels_at_gradient_nchw"][step], 1e-4)
        values, grads = [], []
        for label in range(n_classes):
            value, grad = distance_and_gradient(
                pixels[label], params, real[step, label], jnp.int32(label)
            )
            values.append(value)
            grads.append(grad)
        close(jnp.stack(values), arrays["distance"][step], 1e-4)
        pixels, state = optimizer.update(jnp.stack(grads), state, pixels)
    final = optimizer.interrupted(pixels, state)
    close(nchw(final.reshape(start.shape)), arrays["final_nchw"], 1e-4)


@files("cutmix_boxes")
def test_cutmix_boxes(name):
    for lam, x, y, *box in load(name)["rows"]:
        centre = (jnp.int32(x), jnp.int32(y))
        ours = augment.cutmix_box((32, 32), jnp.float32(lam), centre)
        assert [int(bound) for bound in ours] == [int(bound) for bound in box], lam
