"""From a matcher to gradients of the pixels: by class, by set, or by lesson."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dasm_jax import augment, sampling, training
from dasm_jax.loops import Loop
from dasm_jax.matching import Lesson, Matcher
from dasm_jax.segment import ClassImages, Groups, Variables, every_image
from dasm_jax.types import Array, Batch, Normalization


class Objective(NamedTuple):
    """Gradients of the pixels, in parts that do not depend on each other.

    ``gradients(part, key, variables, view, real, frozen) -> (distance f32[],
    gradients)``, pure. ``view`` is what the learner shows of its networks,
    ``real`` u8[C, B, H, W, ch] a batch of every class. A part i32[] is a class, and its
    gradients are those of its pixels; or there is a single part for all classes, whose
    gradients are like ``variables``.
    """

    separable: bool  # a part is a class
    gradients: Callable[..., tuple[Array, Array | Variables]]

    def parts(self, n_classes: int) -> int:
        """How many there are."""
        return n_classes if self.separable else 1

    def some(self, loop: Loop, parts: Array, *seen: Any) -> tuple[Array, Any]:
        """Distances and gradients of the parts i32[n], stacked."""
        return loop.over(self.gradients, parts, *seen)

    def whole(
        self, loop: Loop, key: Array, variables: Variables, *seen: Array
    ) -> tuple[Array, Variables]:
        """Distances f32[parts] and gradients like ``variables``, in one program."""
        if not self.separable:
            distance, grads = self.gradients(jnp.int32(0), key, variables, *seen)
            return distance[None], grads
        labels = jnp.arange(len(variables.pixels), dtype=jnp.int32)
        each = self.some(loop, labels, key, variables, *seen)
        return self.join([each], variables)

    def join(
        self, groups: list[tuple[Array, Any]], variables: Variables
    ) -> tuple[Array, Variables]:
        """The same, from what ``some`` gave for groups of parts that follow each other.

        What comes after the last part, to fill a group, is dropped.
        """
        count = self.parts(len(variables.pixels))
        distances, grads = jax.tree.map(
            lambda *leaves: jnp.concatenate(leaves)[:count], *groups
        )
        if self.separable:
            nothing = jax.tree.map(jnp.zeros_like, variables.learned)
            return distances, Variables(grads, nothing)
        return distances, jax.tree.map(lambda leaf: leaf[0], grads)


class MatchOptions(NamedTuple):
    """Fixed at compile time."""

    strategy: tuple[str, ...]  # augmentation
    # Decoded images per class (lesson: in all), at most; but one of each group at least
    synthetic_batch: int
    nested: float  # how much a segment is pulled as the end of a prefix, in a polish


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


def set_distance(
    matcher: Matcher,
    view: Any,
    target: Any,
    still: list[Batch],
    moving: list[Batch],
    nested: float = 0.0,
) -> Array:
    """Distance of all groups together, which pulls each by the prefix it ends as well.

    The gradient is that of (1 − ν) · D_K + ν · Σ_k N_k/N · D_k, where D_k is the
    distance of what stands still and the first k of K groups, those before the k-th
    stand still too, and N_k counts their images: a prefix moves an image as far as the
    whole does. A matcher's summary is a mean, so those of all prefixes follow from
    those of the groups.

    Args:
      matcher: of a class or of all classes.
      view: of the networks.
      target: of the real images.
      still: batches of finished segments, before the others.
      moving: those of the active one, or of all segments in order; weights f32[m], or
        f32[C, m] alike in all classes, say how many images of the set each stands for.
      nested: ν in [0, 1].

    Returns:
      D_K, f32[].
    """
    batches = [*still, *moving]
    if len(batches) == 1:
        return matcher.distance(view, target, batches[0])
    summaries = [matcher.summary(view, batch) for batch in batches]
    sizes = [jnp.sum(batch.weights) for batch in batches]

    def distance(count: int, *, frozen: int) -> Array:
        parts = [*jax.lax.stop_gradient(summaries[:frozen]), *summaries[frozen:count]]
        total = sum(sizes[:count])
        mean = jax.tree.map(
            lambda *leaves: sum(n / total * x for n, x in zip(sizes, leaves)), *parts
        )
        return matcher.compare(mean, target)

    whole = distance(len(batches), frozen=len(still))
    if not nested:
        return whole
    ends = [
        sum(sizes[:k]) / sum(sizes) * distance(k, frozen=k - 1)
        for k in range(len(still) + 1, len(batches) + 1)
    ]
    pull = (1 - nested) * whole + nested * sum(ends)
    return pull + jax.lax.stop_gradient(whole - pull)


def make_class_objective(
    matcher: Matcher,
    groups: Groups,
    statistics: Normalization,
    options: MatchOptions,
) -> Objective:
    """Every class on its own, real and synthetic under one augmentation draw.

    The gradient is taken class by class, so that one class's activations exist at once.
    """

    def distance(pixels, frozen, view, real, label, key):
        choice_key, augment_key = jax.random.split(key)
        shown = groups(pixels, frozen, choice_key, options.synthetic_batch)
        size = real.shape[1:3]
        draw = augment.draw_augmentation(augment_key, options.strategy, size)

        def prepare(images, weights):
            return _augmented(
                images, label, weights, draw, options.strategy, statistics
            )

        target = matcher.target(view, prepare(real, jnp.ones(len(real))))
        still, moving = ([prepare(*group) for group in part] for part in shown)
        # Where some stand still it is a segment, no polish.
        nested = 0.0 if still else options.nested
        return set_distance(matcher, view, target, still, moving, nested)

    def gradients(label, key, variables, view, real, frozen):
        return jax.value_and_grad(distance)(
            variables.pixels[label],
            frozen[label],
            view,
            real[label],
            label,
            jax.random.fold_in(key, label),
        )

    return Objective(True, gradients)


def make_set_objective(
    matcher: Matcher,
    groups: Groups,
    statistics: Normalization,
    options: MatchOptions,
) -> Objective:
    """All classes at once, real and synthetic under one augmentation draw."""

    def distance(variables, view, real, frozen, key):
        choice_key, augment_key = jax.random.split(key)
        labels = jnp.arange(len(real), dtype=jnp.int32)

        def of_class(pixels, frozen, label):
            class_key = jax.random.fold_in(choice_key, label)
            return groups(pixels, frozen, class_key, options.synthetic_batch)

        shown = jax.vmap(of_class)(variables.pixels, frozen, labels)
        size = real.shape[2:4]
        draw = augment.draw_augmentation(augment_key, options.strategy, size)

        def prepare(images, weights):
            return jax.vmap(
                lambda images, label, weights: _augmented(
                    images, label, weights, draw, options.strategy, statistics
                )
            )(images, labels, weights)

        target = matcher.target(view, prepare(real, jnp.ones(real.shape[:2])))
        still, moving = ([prepare(*group) for group in part] for part in shown)
        # Where some stand still it is a segment, no polish.
        nested = 0.0 if still else options.nested
        return set_distance(matcher, view, target, still, moving, nested)

    def gradients(part, key, variables, view, real, frozen):
        return jax.value_and_grad(distance)(variables, view, real, frozen, key)

    return Objective(False, gradients)


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

    def batches(pixels, frozen, key):
        data, table = every_image(class_images, pixels, frozen)
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

    def distance(variables, view, frozen, key):
        lesson = Lesson(batches(variables.pixels, frozen, key), variables.learned)
        return matcher.distance(view, matcher.target(view, None), lesson)

    def gradients(part, key, variables, view, real, frozen):
        return jax.value_and_grad(distance)(variables, view, frozen, key)

    return Objective(False, gradients)
