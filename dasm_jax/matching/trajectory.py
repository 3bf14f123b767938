"""Trajectory matching: where training on synthetic images leads (MTT)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dasm_jax.loops import Loop
from dasm_jax.matching.gradient import make_parameter_gradient
from dasm_jax.matching.matcher import ApplyFn, Matcher
from dasm_jax.types import Batch, Params


class Span(NamedTuple):
    """A stretch of an expert's trajectory: before and after M epochs on real images."""

    start: Params
    end: Params


class Lesson(NamedTuple):
    """What a student is taught: batches one after another, and how far it steps."""

    batches: Batch  # with a leading axis of N inner steps
    step_size: Array  # f32[]


def squared_norm(tree: Params) -> Float[Array, ""]:
    """Σ of squares over all leaves."""
    return optax.tree_utils.tree_norm(tree, squared=True)


def make_trajectory_matcher(apply_fn: ApplyFn, loop: Loop) -> Matcher:
    """Match parameters: ‖θ_N − θ_end‖² / ‖θ_start − θ_end‖² after N steps on synthetic.

    Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR
    2022, eq. 2; θ_{t+1} = θ_t − step_size · ∇L(θ_t; batch t), differentiable in images
    and step size.

    Inner steps are rematerialised: backward each is one forward-over-reverse sweep from
    its parameters and images (``make_parameter_gradient``), and no activations outlive
    it: a further step holds one more set of parameters and its images. (In a rolled
    loop. Written out for CPU, XLA's schedule keeps a step's activations all the same.)

    Args:
      apply_fn: ``apply_fn(params, images) -> logits``.
      loop: how the N steps are compiled.
    """
    gradient = make_parameter_gradient(apply_fn, rematerialize=True)

    def target(span: Span, real: None) -> tuple[Params, Float[Array, ""]]:
        way = jax.tree.map(jnp.subtract, span.start, span.end)
        return jax.lax.stop_gradient((span.end, squared_norm(way)))

    def summary(span: Span, lesson: Lesson) -> Params:
        def learn(params: Params, batch: Batch) -> Params:
            return jax.tree.map(
                lambda p, g: p - lesson.step_size * g,
                params,
                gradient(params, *batch),
            )

        return loop.fold(learn, span.start, lesson.batches)

    def compare(
        learned: Params, target: tuple[Params, Float[Array, ""]]
    ) -> Float[Array, ""]:
        end, length = target
        missed = jax.tree.map(jnp.subtract, learned, end)
        # An expert that stood still gives no direction, and must not give NaN.
        return squared_norm(missed) / (length + jnp.finfo(length.dtype).tiny)

    return Matcher(target, summary, compare)
