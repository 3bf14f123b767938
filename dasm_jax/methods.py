"""The methods by name: which matcher, seen how, on which networks.

DC, DSA and IDC are one objective under different settings; what else tells them apart
is where their networks are trained.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dasm_jax import learners, matching, objectives
from dasm_jax.augment import parse_strategy
from dasm_jax.learners import Learner
from dasm_jax.loops import Loop
from dasm_jax.memo import remembered
from dasm_jax.nets import Network
from dasm_jax.objectives import MatchOptions, Objective
from dasm_jax.parameterization import Parameterization
from dasm_jax.recipes import recipe_from
from dasm_jax.schema import (
    AlignmentSettings,
    BatchMethodSettings,
    GradientSettings,
    MethodSettings,
    Settings,
    TrajectoryMatchingSettings,
)
from dasm_jax.segment import image_count, make_class_images, make_groups
from dasm_jax.types import Normalization, Params

SMALLEST_STEP_SIZE = 1e-6

# A student that does not move, or backwards, teaches nothing.
STEP_FORWARD = optax.stateless(
    lambda updates, step_size: jax.tree.map(
        lambda update, value: jnp.maximum(update, SMALLEST_STEP_SIZE - value),
        updates,
        step_size,
    )
)

# Images per class of the finished segments and the active one, where they stand beside
# each other, or of all those of a polish.
Context = tuple[int, ...] | None


class Surroundings(NamedTuple):
    """What every method is built from."""

    network: Network
    parameterization: Parameterization
    statistics: Normalization
    n_classes: int
    loop: Loop
    nested: float  # in a polish: how much a segment is pulled as the end of a prefix


class Method(NamedTuple):
    """How a surrogate objective is run."""

    objective: Callable[[Context, Loop], Objective]  # (context, loop of an objective)
    learner: Callable[[int, int, Context], Learner]  # (stored images, inner, context)
    real_batch: int  # real images per class and step
    view: Callable[[Params], Any]  # parameters -> what the learner shows, for shapes
    learned: Any  # what is learned beside the pixels, at first
    learned_optimizer: optax.GradientTransformation


def make_gradient_method(s: GradientSettings, around: Surroundings) -> Method:
    """DC, DSA, IDC."""
    matcher = matching.make_gradient_matcher(
        around.network.apply, matching.METRICS[s.metric], matching.LAYERS[s.layers]
    )
    return _batch_method(s, around, matcher, objectives.make_class_objective)


def make_embedding_method(s: BatchMethodSettings, around: Surroundings) -> Method:
    """DM."""
    matcher = matching.make_embedding_matcher(around.network.layers)
    return _batch_method(s, around, matcher, objectives.make_class_objective)


def make_alignment_method(s: AlignmentSettings, around: Surroundings) -> Method:
    """CAFE."""
    matcher = matching.make_alignment_matcher(around.network.layers, s.discrimination)
    return _batch_method(s, around, matcher, objectives.make_set_objective)


def make_trajectory_method(
    s: TrajectoryMatchingSettings, around: Surroundings
) -> Method:
    """MTT."""

    def objective(context: Context, loop: Loop) -> Objective:
        return objectives.make_lesson_objective(
            matching.make_trajectory_matcher(around.network.apply, loop),
            make_class_images(around.parameterization, context),
            around.statistics,
            _options(s, nested=0.0),
            s.steps,
        )

    return Method(
        objective=objective,
        learner=lambda size, inner, context: learners.make_expert_learner(inner),
        real_batch=0,
        view=lambda params: matching.Span(params, params),
        learned=jnp.float32(s.step_size),
        learned_optimizer=optax.chain(
            optax.sgd(s.step_size_lr, momentum=s.image.momentum), STEP_FORWARD
        ),
    )


METHODS: dict[str, Callable[..., Method]] = {
    "idc": make_gradient_method,
    "idc_i": make_gradient_method,
    "dc": make_gradient_method,
    "dsa": make_gradient_method,
    "dm": make_embedding_method,
    "cafe": make_alignment_method,
    "mtt": make_trajectory_method,
}


def make_method(settings: Settings, around: Surroundings) -> Method:
    """The method that ``config.matcher.name`` names."""
    return _make_method(settings.matcher.name, settings.matcher.active, around)


@remembered
def _make_method(name: str, s: MethodSettings, around: Surroundings) -> Method:
    return METHODS[name](s, around)


def _options(s: MethodSettings, nested: float) -> MatchOptions:
    return MatchOptions(parse_strategy(s.augment), s.synthetic_batch, nested)


def _batch_method(
    s: BatchMethodSettings,
    around: Surroundings,
    matcher: matching.Matcher,
    make_objective: Callable[..., Objective],
) -> Method:
    def objective(context: Context, loop: Loop) -> Objective:
        groups = make_groups(around.parameterization, context, apart=around.nested > 0)
        options = _options(s, around.nested)
        return make_objective(matcher, groups, around.statistics, options)

    return Method(
        objective=objective,
        learner=partial(_learner, s, around),
        real_batch=s.real_batch,
        view=lambda params: params,
        learned=(),
        learned_optimizer=optax.identity(),
    )


def _learner(
    s: BatchMethodSettings,
    around: Surroundings,
    size: int,
    inner: int,
    context: Context,
) -> Learner:
    if s.trajectory.data == "none":
        if s.trajectory.start == "segments" or s.trajectory.bank:
            return learners.make_fixed_learner()
        return learners.make_fresh_learner(around.network)
    recipe = recipe_from(s.trajectory.recipe)
    source = learners.real_images
    if s.trajectory.data == "synthetic":
        class_images = make_class_images(around.parameterization, context)
        source = learners.make_synthetic_images(class_images)
        count = image_count(around.parameterization, size, context) * around.n_classes
        recipe = recipe._replace(batch=min(recipe.batch, count))
    return learners.make_trained_learner(
        around.network, recipe, around.statistics, source, around.loop.mesh
    )
