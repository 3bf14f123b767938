"""Trajectory matching: an unrolled student in NumPy, derivatives, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import nets
from dasm_jax.loops import Loop
from dasm_jax.matching import Lesson, Span, make_trajectory_matcher
from dasm_jax.types import Batch

WRITTEN_OUT, ROLLED = Loop(False, 1), Loop(True, 1)
STEPS, SIZE, CLASSES = 3, 4, 3


def linear(params, images):
    return images.reshape(len(images), -1) @ params["w"] + params["b"][None]


def case(numbers, shape=(2, 2, 1)):
    pixels = int(np.prod(shape))

    def params():
        return {
            "w": jnp.asarray(numbers.normal(size=(pixels, CLASSES))),
            "b": jnp.asarray(numbers.normal(size=CLASSES)),
        }

    batches = Batch(
        jnp.asarray(numbers.normal(size=(STEPS, SIZE, *shape))),
        jnp.asarray(numbers.integers(0, CLASSES, (STEPS, SIZE)), jnp.int32),
        jnp.asarray(numbers.uniform(0.5, 1.0, (STEPS, SIZE))),
    )
    return Span(params(), params()), Lesson(batches, jnp.asarray(0.3))


def in_numpy(span, lesson):
    """Softmax regression, its gradient written out."""
    start = {name: np.asarray(value) for name, value in span.start.items()}
    w, b = start["w"].copy(), start["b"].copy()
    for images, labels, weights in zip(*(np.asarray(x) for x in lesson.batches)):
        flat = images.reshape(len(images), -1)
        p = np.exp(flat @ w + b)
        p = p / p.sum(axis=1, keepdims=True)
        p[np.arange(len(labels)), labels] -= 1
        p *= (weights / weights.sum())[:, None]
        w, b = (
            w - float(lesson.step_size) * flat.T @ p,
            b - float(lesson.step_size) * p.sum(axis=0),
        )
    end = {name: np.asarray(value) for name, value in span.end.items()}
    missed = ((w - end["w"]) ** 2).sum() + ((b - end["b"]) ** 2).sum()
    way = ((start["w"] - end["w"]) ** 2).sum() + ((start["b"] - end["b"]) ** 2).sum()
    return missed / way


def distance_of(loop, span, apply_fn=linear):
    matcher = make_trajectory_matcher(apply_fn, loop)

    def distance(lesson):
        return matcher.distance(span, matcher.target(span, None), lesson)

    return distance


def moved(lesson, direction, h):
    images = lesson.batches.images + h * direction.batches.images
    return Lesson(
        lesson.batches._replace(images=images),
        lesson.step_size + h * direction.step_size,
    )


def direction_like(lesson):
    numbers = np.random.default_rng(9)
    images = jnp.asarray(numbers.normal(size=lesson.batches.images.shape))
    return Lesson(lesson.batches._replace(images=images), jnp.asarray(0.7))


def along(gradient, direction):
    return float(
        (gradient.batches.images * direction.batches.images).sum()
        + gradient.step_size * direction.step_size
    )


@pytest.mark.parametrize("loop", [WRITTEN_OUT, ROLLED], ids=["written out", "rolled"])
def test_value_and_gradient(loop):
    with jax.enable_x64(True):
        span, lesson = case(np.random.default_rng(0))
        distance = distance_of(loop, span)
        assert float(distance(lesson)) == pytest.approx(
            in_numpy(span, lesson), rel=1e-12
        )
        gradient = jax.jit(jax.grad(distance, allow_int=True))(lesson)
        direction = direction_like(lesson)
        ahead, behind = (
            in_numpy(span, moved(lesson, direction, h)) for h in (1e-6, -1e-6)
        )
        slope = (ahead - behind) / 2e-6
        assert along(gradient, direction) == pytest.approx(slope, rel=1e-7)


@pytest.mark.slow
def test_second_order():
    with jax.enable_x64(True):
        span, lesson = case(np.random.default_rng(1))
        direction = direction_like(lesson)
        distance = distance_of(WRITTEN_OUT, span)

        def slope(h):
            gradient = jax.grad(distance, allow_int=True)(moved(lesson, direction, h))
            return (gradient.batches.images * direction.batches.images).sum()

        curved = jax.grad(slope)(jnp.asarray(0.0))
        wanted = (slope(1e-6) - slope(-1e-6)) / 2e-6
        assert float(curved) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.slow
def test_expert_that_stood_still():
    span, lesson = case(np.random.default_rng(2))
    to32 = lambda tree: jax.tree.map(  # noqa: E731
        lambda x: x if x.dtype == jnp.int32 else x.astype(jnp.float32), tree
    )
    span, lesson = to32(Span(span.start, span.start)), to32(lesson)
    value, gradient = jax.value_and_grad(
        distance_of(WRITTEN_OUT, span), allow_int=True
    )(lesson._replace(step_size=jnp.float32(0)))
    assert float(value) == 0
    assert np.isfinite(gradient.batches.images).all()
    assert np.isfinite(gradient.step_size)


def test_perfect_student():
    """A lesson of the expert's own step leads exactly to the target."""
    with jax.enable_x64(True):
        span, lesson = case(np.random.default_rng(3))
        one = Lesson(Batch(*(field[:1] for field in lesson.batches)), lesson.step_size)

        def loss(params):
            logits = linear(params, one.batches.images[0])
            log_p = jax.nn.log_softmax(logits)
            own = jnp.take_along_axis(log_p, one.batches.labels[0][:, None], 1)[:, 0]
            weights = one.batches.weights[0]
            return -(own * weights).sum() / weights.sum()

        end = jax.tree.map(
            lambda p, g: p - 0.3 * g, span.start, jax.grad(loss)(span.start)
        )
        distance = distance_of(WRITTEN_OUT, Span(span.start, end))
        assert float(distance(one)) == pytest.approx(0, abs=1e-25)


def test_memory_does_not_grow_with_the_steps():
    """A further step holds its parameters and images, and no activations.

    In the form of accelerators; written out, XLA on CPU keeps a step's activations.
    """
    shape, width, size = (16, 16, 1), 16, 64
    network = nets.make_convnet(shape, CLASSES, width=width, depth=2)
    params = jax.eval_shape(network.init, jax.random.key(0))

    def temporary_bytes(steps):
        like = jax.ShapeDtypeStruct
        lesson = Lesson(
            Batch(
                like((steps, size, *shape), jnp.float32),
                like((steps, size), jnp.int32),
                like((steps, size), jnp.float32),
            ),
            like((), jnp.float32),
        )

        def gradient(span, lesson):
            distance = distance_of(ROLLED, span, network.apply)
            return jax.grad(
                lambda images, step_size: distance(
                    Lesson(lesson.batches._replace(images=images), step_size)
                ),
                (0, 1),
            )(lesson.batches.images, lesson.step_size)

        program = jax.jit(gradient).lower(Span(params, params), lesson).compile()
        return program.memory_analysis().temp_size_in_bytes

    of_params = sum(4 * x.size for x in jax.tree.leaves(params))
    of_images = 4 * size * int(np.prod(shape))
    activations = 4 * size * width * 16 * 16  # of the first convolution alone
    growth = (temporary_bytes(8) - temporary_bytes(2)) / 6
    assert growth < 2 * (of_params + of_images) < 0.2 * activations
