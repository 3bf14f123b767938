"""From a matcher to gradients of the pixels: by class, by set, or by lesson.

An objective is a pure function ``(key, variables, view, real, frozen, frozen_count) ->
(distances, gradients)`` where ``view`` is what the learner shows of its networks,
``real`` u8[C, B, H, W, ch] a batch of every class, ``distances`` f32[C], or f32[1] for
objectives that see all classes at once, and ``gradients`` are like ``variables``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dasm_jax import augment, sampling, training
from dasm_jax.loops import Loop
from dasm_jax.matching import Lesson, Matcher
from dasm_jax.segment import ClassImages, Variables, every_image
from dasm_jax.types import Array, Batch, Normalization

Objective = Callable[..., tuple[Array, Variables]]


class MatchOptions(NamedTuple):
    """Fixed at compile time."""

    strategy: tuple[str, ...]  # augmentation
    synthetic_batch: int  # decoded images per class (lesson: in all), at most
    loop: Loop


def _augmented(
    images: Array,
    label: Array,
    weights: Array,
    draw: augment.Draw,
    strategy: tuple[str, ...],
    statistics: Normalization,
) -> Batch:
    images = training.normalize(training.to_unit(images), statistics)
    images = augment.augment_shared(images, draw, strategy)
    return Batch(images, jnp.full(len(images), label), weights)


def make_class_objective(
    matcher: Matcher,
    class_images: ClassImages,
    statistics: Normalization,
    options: MatchOptions,
) -> Objective:
    """Every class on its own, real and synthetic under one augmentation draw.

    The gradient is taken class by class, so that one class's activations exist at once.
    """

    def distance(pixels, frozen, frozen_count, view, real, label, key):
        choice_key, augment_key = jax.random.split(key)
        images, weights = class_images(
            pixels, frozen, frozen_count, choice_key, options.synthetic_batch
        )
        size = (images.shape[1], images.shape[2])
        draw = augment.draw_augmentation(augment_key, options.strategy, size)

        def prepare(images, weights):
            return _augmented(
                images, label, weights, draw, options.strategy, statistics
            )

        target = matcher.target(view, prepare(real, jnp.ones(len(real))))
        return matcher.distance(view, target, prepare(images, weights))

    def objective(key, variables, view, real, frozen, frozen_count):
        def match_class(args):
            pixels, frozen, real, label = args
            class_key = jax.random.fold_in(key, label)
            return jax.value_and_grad(distance)(
                pixels, frozen, frozen_count, view, real, label, class_key
            )

        labels = jnp.arange(len(real), dtype=jnp.int32)
        distances, grads = options.loop.over(
            match_class, (variables.pixels, frozen, real, labels)
        )
        nothing = jax.tree.map(jnp.zeros_like, variables.learned)
        return distances, Variables(grads, nothing)

    return objective


def make_set_objective(
    matcher: Matcher,
    class_images: ClassImages,
    statistics: Normalization,
    options: MatchOptions,
) -> Objective:
    """All classes at once, real and synthetic under one augmentation draw."""

    def distance(variables, view, real, frozen, frozen_count, key):
        choice_key, augment_key = jax.random.split(key)
        labels = jnp.arange(len(real), dtype=jnp.int32)

        def of_class(pixels, frozen, label):
            class_key = jax.random.fold_in(choice_key, label)
            return class_images(
                pixels, frozen, frozen_count, class_key, options.synthetic_batch
            )

        images, weights = jax.vmap(of_class)(variables.pixels, frozen, labels)
        size = (images.shape[2], images.shape[3])
        draw = augment.draw_augmentation(augment_key, options.strategy, size)

        def prepare(images, weights):
            return jax.vmap(
                lambda images, label, weights: _augmented(
                    images, label, weights, draw, options.strategy, statistics
                )
            )(images, labels, weights)

        target = matcher.target(view, prepare(real, jnp.ones(real.shape[:2])))
        return matcher.distance(view, target, prepare(images, weights))

    def objective(key, variables, view, real, frozen, frozen_count):
        value, grads = jax.value_and_grad(distance)(
            variables, view, real, frozen, frozen_count, key
        )
        return value[None], grads

    return objective


def make_lesson_objective(
    matcher: Matcher,
    class_images: ClassImages,
    statistics: Normalization,
    options: MatchOptions,
    steps: int,
) -> Objective:
    """A student's ``steps`` batches, drawn without replacement from all the images.

    Every image has an augmentation of its own. ``variables.learned`` is the step size.
    """

    def batches(pixels, frozen, frozen_count, key):
        data, table = every_image(class_images, pixels, frozen, frozen_count)
        size = min(options.synthetic_batch, len(data.labels))
        order_key, augment_key = jax.random.split(key)
        sampler, indices = sampling.start_sampler(table), []
        for _ in range(steps):
            sampler, index = sampling.next_batch(order_key, sampler, table, size)
            indices.append(index[0])
        images = training.normalize(data.images, statistics)
        augmented = [
            augment.augment_each(
                jax.random.fold_in(augment_key, step), images[index], options.strategy
            )
            for step, index in enumerate(indices)
        ]
        return Batch(
            jnp.stack(augmented),
            data.labels[jnp.stack(indices)],
            jnp.ones((steps, size)),
        )

    def distance(variables, view, frozen, frozen_count, key):
        lesson = Lesson(
            batches(variables.pixels, frozen, frozen_count, key), variables.learned
        )
        return matcher.distance(view, matcher.target(view, None), lesson)

    def objective(key, variables, view, real, frozen, frozen_count):
        value, grads = jax.value_and_grad(distance)(
            variables, view, frozen, frozen_count, key
        )
        return value[None], grads

    return objective
