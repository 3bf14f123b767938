"""DM and CAFE against NumPy restatements and finite differences in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax.matching import (
    every_parameter,
    make_alignment_matcher,
    make_embedding_matcher,
    make_gradient_matcher,
)
from dasm_jax.types import Batch
from tests.small import slow_but

CLASSES, SHAPE = 3, (2, 3, 1)


def layers(params, images):
    """Two layers; the second is the embedding."""
    first = jnp.tanh(images.reshape(len(images), -1) @ params["a"])
    return first, jnp.sin(first @ params["b"])


def layers_in_numpy(params, images):
    first = np.tanh(np.asarray(images).reshape(len(images), -1) @ params["a"])
    return first, np.sin(first @ params["b"])


def parameters(numbers):
    return {"a": numbers.normal(size=(6, 5)), "b": numbers.normal(size=(5, 4))}


def batch(numbers, *lead):
    labels = np.broadcast_to(np.arange(CLASSES)[:, None], lead) if len(lead) > 1 else 0
    return Batch(
        jnp.asarray(numbers.normal(size=(*lead, *SHAPE))),
        jnp.asarray(np.broadcast_to(labels, lead), jnp.int32),
        jnp.asarray(numbers.uniform(0.2, 1.0, lead)),
    )


def mean(values, weights):
    weights = np.asarray(weights)
    return sum(w * v for w, v in zip(weights, values)) / weights.sum()


def embedding_distance(params, real, synthetic):
    ours, wanted = (
        mean(layers_in_numpy(params, b.images)[1], b.weights) for b in (synthetic, real)
    )
    return ((ours - wanted) ** 2).sum()


def alignment_distance(params, real, synthetic, weight):
    aligned, centres, embeddings = 0.0, [], []
    for label in range(CLASSES):
        ours = layers_in_numpy(params, synthetic.images[label])
        wanted = layers_in_numpy(params, real.images[label])
        for x, y in zip(ours, wanted):
            x, y = mean(x, synthetic.weights[label]), mean(y, real.weights[label])
            aligned += ((x - y) ** 2).sum()
        centres.append(mean(ours[1], synthetic.weights[label]))
        embeddings.append(wanted[1])
    told_apart = []
    for label, of_class in enumerate(embeddings):
        for embedding in of_class:
            logits = np.array([embedding @ centre for centre in centres])
            told_apart.append(np.log(np.exp(logits).sum()) - logits[label])
    return aligned + weight * np.sum(told_apart)


CASES = {
    "dm": ((), make_embedding_matcher(layers), embedding_distance),
    "cafe": (
        (CLASSES,),
        make_alignment_matcher(layers, 0.3),
        lambda *args: alignment_distance(*args, 0.3),
    ),
}


@pytest.mark.parametrize("name", ["dm", "cafe", "gradient"])
def test_a_summary_is_the_mean_of_those_of_parts(name):
    """So that a polish has those of all prefixes from those of the segments."""
    gradients = make_gradient_matcher(
        lambda params, images: layers(params, images)[1], layers=every_parameter
    )
    lead, matcher, _ = CASES.get(name, ((), gradients, None))
    numbers = np.random.default_rng(0)
    params, whole = parameters(numbers), batch(numbers, *lead, 5)
    # Of all classes alike, as images of segments weigh.
    weights = np.broadcast_to(np.arange(1.0, 6.0), whole.weights.shape)
    whole = whole._replace(weights=jnp.asarray(weights))
    first, last = (
        Batch(*(np.split(field, [2], axis=len(lead))[part] for field in whole))
        for part in (0, 1)
    )
    expected = matcher.summary(params, whole)
    of_parts = jax.tree.map(
        lambda x, y: (3 * x + 12 * y) / 15,
        matcher.summary(params, first),
        matcher.summary(params, last),
    )
    for got, want in zip(jax.tree.leaves(of_parts), jax.tree.leaves(expected)):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        assert np.abs(want).max() > 1e-3


def distance_of(name, numbers):
    lead, matcher, expected = CASES[name]
    params, real, synthetic = (
        parameters(numbers),
        batch(numbers, *lead, 5),
        batch(numbers, *lead, 4),
    )

    def distance(images):
        target = matcher.target(params, real)
        return matcher.distance(params, target, synthetic._replace(images=images))

    def in_numpy(images):
        return expected(params, real, synthetic._replace(images=images))

    return distance, in_numpy, synthetic.images


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
    with jax.enable_x64(True):
        distance, in_numpy, images = distance_of(name, np.random.default_rng(0))
        assert float(distance(images)) == pytest.approx(in_numpy(images), rel=1e-12)
        gradient = jax.jit(jax.grad(distance))(images)
        direction = np.random.default_rng(1).normal(size=images.shape)
        ahead, behind = (in_numpy(images + h * direction) for h in (1e-6, -1e-6))
        slope = (ahead - behind) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_second_order(name):
    with jax.enable_x64(True):
        distance, _, images = distance_of(name, np.random.default_rng(2))
        gradient = jax.jit(jax.grad(distance))
        direction = jnp.asarray(np.random.default_rng(3).normal(size=images.shape))
        _, curved = jax.jvp(gradient, (images,), (direction,))
        wanted = gradient(images + 1e-6 * direction)
        wanted = (wanted - gradient(images - 1e-6 * direction)) / 2e-6
        np.testing.assert_allclose(curved, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", slow_but(CASES, "dm"))
def test_equal_batches_and_zero_embeddings(name):
    lead, _, _ = CASES[name]
    make = (
        make_embedding_matcher
        if name == "dm"
        else lambda layers: make_alignment_matcher(layers, 0.0)
    )
    numbers = np.random.default_rng(0)
    same = batch(numbers, *lead, 4)
    same = jax.tree.map(
        lambda x: x.astype(jnp.float32) if x.dtype != jnp.int32 else x, same
    )
    params = jax.tree.map(jnp.float32, parameters(numbers))
    for of_layers in (layers, lambda p, x: tuple(0 * y for y in layers(p, x))):
        matcher = make(of_layers)

        def distance(images, matcher=matcher):
            target = matcher.target(params, same)
            return matcher.distance(params, target, same._replace(images=images))

        assert float(distance(same.images)) == pytest.approx(0, abs=1e-10)
        gradient = jax.grad(distance)
        assert np.isfinite(gradient(same.images)).all()
        assert np.isfinite(jax.jacfwd(gradient)(same.images)).all()


@pytest.mark.parametrize("name", CASES)
def test_target_is_a_constant(name):
    lead, matcher, _ = CASES[name]
    numbers = np.random.default_rng(0)
    params, real = parameters(numbers), batch(numbers, *lead, 4)
    params = jax.tree.map(jnp.float32, params)
    real = jax.tree.map(
        lambda x: x.astype(jnp.float32) if x.ndim > 1 + len(lead) else x, real
    )

    def of_real(images):
        target = matcher.target(params, real._replace(images=images))
        return sum(jnp.sum(x) for x in jax.tree.leaves(target) if x.dtype != jnp.int32)

    np.testing.assert_array_equal(jax.grad(of_real)(real.images), 0)


def test_weight_zero_leaves_an_image_out():
    numbers = np.random.default_rng(0)
    params, real = jax.tree.map(jnp.float32, parameters(numbers)), batch(numbers, 5)
    real = Batch(jnp.float32(real.images), real.labels, jnp.float32(real.weights))
    matcher = make_embedding_matcher(layers)
    short = Batch(*(field[:4] for field in real))
    left_out = real._replace(weights=real.weights.at[4].set(0.0))
    np.testing.assert_allclose(
        matcher.target(params, left_out), matcher.target(params, short), rtol=1e-6
    )
