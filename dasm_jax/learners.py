"""Networks that a matcher looks at: where they start, and how they go on.

A learner is a few pure functions; which of them a method uses is what tells IDC, DC, DM
and MTT apart beside the distance.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from jaxtyping import Key

from dasm_jax import sampling, training
from dasm_jax.keys import Use, key_for
from dasm_jax.matching import Span
from dasm_jax.mesh import Mesh
from dasm_jax.nets import Network
from dasm_jax.sampling import IndexTable, SamplerState
from dasm_jax.segment import ClassImages, SegmentData, every_image
from dasm_jax.training import Recipe, Rows, TrainState, TrainStep
from dasm_jax.types import Array, ArrayDataset, Normalization, Params


class Learner(NamedTuple):
    """``given`` is what the driver supplies to every outer iteration."""

    start: Callable[[Any, SegmentData, Array], Any]  # (given, data, pixels) -> state
    restart: Callable[[Any, Any], Any]  # (state, given) -> state
    view: Callable[[Array, Any, SegmentData, Array], Any]  # (key, state, data, step)
    # How the networks go on, from (key, state, data, pixels); None: not at all.
    step: TrainStep | None


# What a network is trained on: (data, pixels) -> images and the table of those in use.
Source = Callable[[SegmentData, Array], tuple[ArrayDataset, IndexTable]]


def real_images(data: SegmentData, pixels: Array) -> tuple[ArrayDataset, IndexTable]:
    """Real training images: all of them, or the pool (IDC)."""
    return data.real, data.network_data


def make_synthetic_images(class_images: ClassImages) -> Source:
    """The synthetic images as they stand (DC, DSA, CAFE)."""

    def synthetic_images(data, pixels):
        return every_image(class_images, pixels, data.frozen)

    return synthetic_images


def make_trained_learner(
    network: Network,
    recipe: Recipe,
    statistics: Normalization,
    source: Source,
    mesh: Mesh | None = None,
) -> Learner:
    """A network that is given at every outer iteration and trained between steps.

    On a mesh every device takes a share of each batch.
    """
    train_step = training.make_train_step(network, recipe, statistics, mesh=mesh)

    def start(params: Params, data: SegmentData, pixels: Array) -> TrainState:
        _, table = source(data, pixels)
        return training.start_training(params, recipe, sampling.start_sampler(table))

    def restart(state: TrainState, params: Params) -> TrainState:
        # The data go on where the network before stopped.
        return training.start_training(params, recipe, state.sampler, state.step)

    def view(
        key: Key[jax.Array, ""], state: TrainState, data: SegmentData, step: Array
    ) -> Params:
        return state.params

    def draw(
        key: Key[jax.Array, ""], state: TrainState, data: SegmentData, pixels: Array
    ) -> tuple[SamplerState, Rows, Array]:
        network_key = key_for(key, Use.TRAJECTORY, data.segment, data.pool_round)
        return train_step.draw(network_key, state, *source(data, pixels))

    return Learner(start, restart, view, replace(train_step, draw=draw))


def make_fresh_learner(network: Network) -> Learner:
    """A network drawn anew in every step, never trained (DM)."""

    def view(
        key: Key[jax.Array, ""], state: None, data: SegmentData, step: Array
    ) -> Params:
        return network.init(key_for(key, Use.NETWORK_INIT, data.segment, step))

    return Learner(
        start=lambda given, data, pixels: None,
        restart=lambda state, given: None,
        view=view,
        step=None,
    )


def make_fixed_learner() -> Learner:
    """A network that is given at every outer iteration and never trained."""
    return Learner(
        start=lambda params, data, pixels: params,
        restart=lambda state, params: params,
        view=lambda key, state, data, step: state,
        step=None,
    )


def make_expert_learner(inner: int) -> Learner:
    """Stretches of expert trajectories, one for each of ``inner`` steps (MTT)."""

    def view(
        key: Key[jax.Array, ""], spans: Span, data: SegmentData, step: Array
    ) -> Span:
        return jax.tree.map(lambda leaf: leaf[step % inner], spans)

    return Learner(
        start=lambda spans, data, pixels: spans,
        restart=lambda state, spans: spans,
        view=view,
        step=None,
    )
