"""Every matcher by name: against slow, literal loops, alone and under DASM.

The loops below do what the public codes do, on the images that networks see: match,
take one SGD step with momentum, train or redraw the network. They share derived keys,
real batches and augmentation draws with the program; distances are written out again
and their derivatives are plain double backward.
"""

from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import augment, experts, initial, sampling, training
from dasm_jax.dasm import run_dasm
from dasm_jax.keys import Use, key_for
from dasm_jax.loops import Loop
from dasm_jax.plan import plan_segments
from dasm_jax.pools import Pool
from dasm_jax.recipes import recipe_from
from dasm_jax.schema import MATCHERS
from dasm_jax.segment import Variables
from dasm_jax.supply import make_supplier
from dasm_jax.types import Normalization
from dasm_jax.whitening import fit_whitening
from tests.small import slow_but, small_problem, small_results

ROOT = jax.random.key(0)
OUTER, INNER, IPC = 2, 3, 2


def run(**changes):
    return run_dasm(small_problem(**changes))


# --- one segment: the public loops ----------------------------------------------------


def cross_entropy(network, params, images, labels):
    """Mean over images of one class, or of a label each."""
    labels = jnp.broadcast_to(jnp.int32(labels), len(images))
    log_p = jax.nn.log_softmax(network.apply(params, images))
    return -jnp.take_along_axis(log_p, labels[:, None], 1).mean()


def cosine_gap(ours, wanted):
    """Σ over the output channels of all kernels of 1 − cosine."""
    total = 0.0
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        if x.ndim > 1:
            x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
            length = jnp.sqrt((x * x).sum(0)) * jnp.sqrt((y * y).sum(0))
            total += (1 - (x * y).sum(0) / (length + 1e-6)).sum()
    return total


def augmented(key, images, strategy):
    """Real and synthetic images of a class, or of all, under one draw."""
    draw = augment.draw_augmentation(jax.random.split(key)[1], strategy, (8, 8))
    return [augment.augment_shared(x, draw, strategy) for x in images]


def gradient_distance(problem, params, inputs, real, key):
    """DC and DSA."""
    m, total = problem.settings.matcher.active, 0.0
    strategy = augment.parse_strategy(m.augment)
    for c in range(len(inputs)):
        ours, theirs = augmented(
            jax.random.fold_in(key, c), (inputs[c], real[c]), strategy
        )
        loss = partial(cross_entropy, problem.network)
        grads = [jax.grad(loss)(params, images, c) for images in (ours, theirs)]
        total += cosine_gap(*grads)
    return total


def embedding_distance(problem, params, inputs, real, key):
    """DM."""
    strategy = augment.parse_strategy(problem.settings.matcher.active.augment)
    total = 0.0
    for c in range(len(inputs)):
        images = augmented(jax.random.fold_in(key, c), (inputs[c], real[c]), strategy)
        means = [
            problem.network.layers(params, x)[-1].reshape(len(x), -1).mean(0)
            for x in images
        ]
        total += ((means[0] - means[1]) ** 2).sum()
    return total


def alignment_distance(problem, params, inputs, real, key):
    """CAFE."""
    m = problem.settings.matcher.active
    strategy = augment.parse_strategy(m.augment)
    draw = augment.draw_augmentation(jax.random.split(key)[1], strategy, (8, 8))
    pairs = [
        [augment.augment_shared(x[c], draw, strategy) for x in (inputs, real)]
        for c in range(len(inputs))
    ]
    layers = [
        [
            [x.reshape(len(x), -1) for x in problem.network.layers(params, images)]
            for images in pair
        ]
        for pair in pairs
    ]
    total = 0.0
    for ours, theirs in layers:
        for x, y in zip(ours, theirs, strict=True):
            total += ((x.mean(0) - y.mean(0)) ** 2).sum()
    centres = jnp.stack([ours[-1].mean(0) for ours, _ in layers])
    losses = [
        -jax.nn.log_softmax(theirs[-1] @ centres.T)[:, c]
        for c, (_, theirs) in enumerate(layers)
    ]
    return total + m.discrimination * jnp.stack(losses).sum()


DISTANCES = {
    "dc": gradient_distance,
    "dsa": gradient_distance,
    "dm": embedding_distance,
    "cafe": alignment_distance,
}


def literal_run(problem):
    """Pixels of the only segment and the distance of every step, summed over classes.

    Networks train on whole batches of the synthetic images, so their order is nothing.
    """
    m, net = problem.settings.matcher.active, problem.network
    distance_of = DISTANCES[problem.settings.matcher.name]
    statistics = problem.statistics
    low, high = (
        training.normalize(jnp.full((1, 1, 1, 1), level), statistics)
        for level in (0.0, 1.0)
    )
    inputs = training.normalize(start_of(problem), statistics)
    inputs = inputs.reshape(2, IPC, 8, 8, 1)
    labels = jnp.repeat(jnp.arange(2, dtype=jnp.int32), IPC)
    pool = sampling.make_table(problem.class_indices)
    place, velocity = sampling.start_sampler(pool), jnp.zeros_like(inputs)
    matched = jax.jit(
        jax.value_and_grad(
            lambda z, params, real, key: distance_of(problem, params, z, real, key)
        )
    )
    learn = jax.jit(
        jax.grad(
            lambda p, z: cross_entropy(net, p, z.reshape(-1, *z.shape[2:]), labels)
        )
    )
    distances, step = [], 0
    for outer in range(OUTER):
        inputs = jnp.clip(inputs, low[None], high[None])
        params = net.init(key_for(ROOT, Use.NETWORK_INIT, 1, outer))
        for _ in range(INNER):
            if problem.settings.matcher.name == "dm":
                params = net.init(key_for(ROOT, Use.NETWORK_INIT, 1, step))
            place, index = sampling.next_batch(
                key_for(ROOT, Use.REAL_ORDER, 1, 0), place, pool, m.real_batch
            )
            real = training.normalize(
                training.to_unit(problem.real.images[index.reshape(-1)]), statistics
            ).reshape(2, m.real_batch, 8, 8, 1)
            key = key_for(ROOT, Use.MATCH, 1, step)
            value, grad = matched(inputs, params, real, key)
            velocity = m.image.momentum * velocity + grad
            inputs = inputs - m.image.lr * velocity
            distances.append(float(value))
            for _ in range(0 if problem.settings.matcher.name == "dm" else 2):  # epochs
                params = jax.tree.map(
                    lambda p, g: p - 0.01 * g, params, learn(params, inputs)
                )
            step += 1
    pixels = training.denormalize(inputs.reshape(-1, 8, 8, 1), statistics)
    return np.clip(pixels, 0, 1).reshape(2, IPC, 8, 8, 1), np.array(distances)


def start_of(problem):
    """What the only segment begins with, f32[2 · IPC, 8, 8, 1] in [0, 1]."""
    train = problem.dataset.train.images
    return jnp.concatenate(
        [
            initial.mix(key_for(ROOT, Use.IMAGE_INIT, 1, c), train[members], IPC, 1)
            for c, members in enumerate(problem.class_indices)
        ]
    )


def one_segment(name, **changes):
    fields = {"image__lr": 2.0, "loop__niter": OUTER, "loop__inner": INNER, **changes}
    fields = {f"matcher__{name}__{key}": value for key, value in fields.items()}
    return small_problem(ipc=IPC, dasm__segments=1, matcher__name=name, **fields)


@pytest.mark.parametrize("name", slow_but(sorted(DISTANCES), "dm"))
def test_one_segment_is_the_public_loop(name):
    # Flips and colours keep the comparison away from the kinks of bilinear shifts.
    strategy = {"dc": "none"}.get(name, "color_flip_cutout")
    rate = {"dc": 0.05, "dsa": 0.1, "dm": 50.0, "cafe": 5.0}[name]
    changes = {"augment": strategy, "image__lr": rate}
    if name == "dsa":  # the literal loop trains without augmentation
        changes["trajectory__recipe__augment"] = "none"
    problem, seen = one_segment(name, **changes), []
    (result,) = run_dasm(problem, on_outer=lambda p: seen.append(p.distances))
    pixels, distances = literal_run(problem)
    np.testing.assert_allclose(np.concatenate(seen).sum(1), distances, rtol=5e-3)
    np.testing.assert_allclose(result.pixels, pixels, atol=3e-4)
    moved = np.abs(pixels.reshape(-1, 8, 8, 1) - start_of(problem))
    assert moved.max() > 0.03  # a hundred times what the two may differ by


@pytest.mark.slow
def test_one_segment_of_trajectory_matching_is_the_public_loop():
    problem = one_segment(
        "mtt", augment="none", image__lr=1.0, step_size=0.05, step_size_lr=1e-5
    )
    m = problem.settings.matcher.mtt
    (plan,) = plan_segments(problem)
    whole = Pool(problem.class_indices, None, [], 0.0)
    supply = make_supplier(problem, ROOT, None)(plan, whole)
    inputs = training.normalize(start_of(problem), problem.statistics)
    labels = jnp.repeat(jnp.arange(2, dtype=jnp.int32), IPC)
    low, high = (
        training.normalize(jnp.full((1, 1, 1, 1), level), problem.statistics)
        for level in (0.0, 1.0)
    )

    def square(tree):
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(tree))

    @jax.jit
    def distance(inputs, step_size, start, end):
        params = start
        for _ in range(m.steps):
            grads = jax.grad(
                lambda p: cross_entropy(problem.network, p, inputs, labels)
            )(params)
            params = jax.tree.map(lambda p, g: p - step_size * g, params, grads)
        missed = jax.tree.map(jnp.subtract, params, end)
        return square(missed) / square(jax.tree.map(jnp.subtract, start, end))

    velocity, step_velocity = jnp.zeros_like(inputs), 0.0
    step_size, distances = jnp.float32(m.step_size), []
    for outer in range(OUTER):
        inputs = jnp.clip(inputs, low, high)
        spans = supply.given(outer)
        for inner in range(INNER):
            span = jax.tree.map(itemgetter(inner), spans)
            value, (grad, step_grad) = jax.value_and_grad(distance, (0, 1))(
                inputs, step_size, *span
            )
            velocity = m.image.momentum * velocity + grad
            step_velocity = m.image.momentum * step_velocity + step_grad
            inputs = inputs - m.image.lr * velocity
            step_size = step_size - m.step_size_lr * step_velocity
            distances.append(float(value))
    seen = []
    (result,) = run_dasm(problem, on_outer=lambda p: seen.append(p.distances))
    pixels = np.clip(training.denormalize(inputs, problem.statistics), 0, 1)
    np.testing.assert_allclose(np.concatenate(seen)[:, 0], distances, rtol=1e-4)
    np.testing.assert_allclose(result.pixels.reshape(-1, 8, 8, 1), pixels, atol=3e-4)
    assert np.abs(pixels - np.asarray(start_of(problem))).max() > 0.05
    assert result.learned == pytest.approx(float(step_size), rel=1e-4)
    assert abs(result.learned - m.step_size) > 1e-5


# --- under DASM -----------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but(MATCHERS, "idc", "dm"))
def test_every_matcher_makes_segments_and_repeats_itself(name):
    first, again = small_results(matcher__name=name), run(matcher__name=name)
    start = start_of(small_problem(matcher__name=name)).reshape(2, IPC, 8, 8, 1)
    assert [result.plan.size for result in first] == [2, 2]
    for ours, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        assert np.isfinite(ours.pixels).all()
        assert 0 <= ours.pixels.min() < ours.pixels.max() <= 1
        assert ours.learned == theirs.learned
    assert np.abs(first[0].pixels - start).max() > 1e-5  # they were matched
    assert len(first[1].pool.members[0]) < 40  # a window, not everything


@pytest.mark.parametrize("name", slow_but(MATCHERS, "dm"))
def test_scan_on_accelerators_gives_the_same_numbers(name):
    problem = small_problem(matcher__name=name)
    rolled = problem._replace(loop=Loop(rolled=True, steps_per_call=2))
    separate = small_results(matcher__name=name)
    for ours, theirs in zip(run_dasm(rolled), separate, strict=True):
        np.testing.assert_allclose(ours.pixels, theirs.pixels, atol=1e-4)


@pytest.mark.parametrize("name", slow_but(MATCHERS, "dm", "cafe"))
def test_finished_segments_stand_beside_the_active_one(name):
    """Frozen and active images give what the same images give as one segment."""
    problem = small_problem(matcher__name=name, **{f"matcher__{name}__augment": "none"})
    pixels = jax.random.uniform(jax.random.key(1), (2, 4, 8, 8, 1))
    params = [problem.network.init(jax.random.key(n)) for n in (2, 3)]
    view = params[0]
    if name == "mtt":
        view = experts.Span(*params)
    index = np.stack([members[:8] for members in problem.class_indices])
    real = problem.real.images[index]
    learned = problem.method.learned

    def objective(context):
        # A key of its own: the two must draw alike.
        objective = problem.method.objective(context, problem.loop)
        whole = jax.jit(partial(objective.whole, problem.loop))
        return partial(whole, jax.random.key(4))

    values, grads = objective((2, 2))(
        Variables(pixels[:, 2:], learned), view, real, pixels[:, :2]
    )
    whole, whole_grads = objective(None)(
        Variables(pixels, learned), view, real, pixels[:, :0]
    )
    np.testing.assert_allclose(values, whole, rtol=1e-4)
    scale = np.abs(whole_grads.pixels).max()
    np.testing.assert_allclose(
        grads.pixels, whole_grads.pixels[:, 2:], atol=2e-3 * scale
    )


@pytest.mark.slow
def test_networks_of_feature_matching_may_come_from_the_segments():
    problem = small_problem(
        matcher__name="dm", matcher__dm__trajectory__start="segments"
    )
    networks = {}

    def watch(progress):
        networks[progress.plan.segment] = progress.snapshot().active.pool.networks

    results = run_dasm(problem, on_outer=watch)
    assert networks[1] == []  # none yet: drawn at random
    assert len(networks[2]) == 2
    # Once a segment is frozen nothing needs them.
    assert [result.pool.networks for result in results] == [[], []]
    # One network for all steps of an outer iteration; with every real image and nothing
    # drawn, its distance falls.


@pytest.mark.slow
def test_experts_of_a_segment_learn_from_its_pool_in_its_window():
    problem = small_problem(
        matcher__name="mtt", matcher__mtt__epochs=5, matcher__mtt__max_start=4
    )
    m = problem.settings.matcher.mtt
    plan = plan_segments(problem)[1]
    members = [indices[5:30] for indices in problem.class_indices]
    supply = make_supplier(problem, ROOT, None)(plan, Pool(members, None, [], 0.0))
    expert_plan = experts.ExpertPlan(m.experts, m.epochs, 1, recipe_from(m.recipe))
    buffer = experts.expert_trajectories(
        experts.make_expert_trainer(problem.network, expert_plan, problem.statistics),
        problem.network,
        expert_plan,
        root=ROOT,
        segment=2,
        data=problem.real,
        table=sampling.make_table([np.concatenate(members)], 80),
        folder=None,
        identity={},
    )
    moments = jax.tree.leaves(buffer)[0]
    found = set()
    for outer in range(6):
        spans = supply.given(outer)
        starts, ends = (jax.tree.leaves(tree)[0] for tree in (spans.start, spans.end))
        for start, end in zip(starts, ends, strict=True):
            (where,) = np.argwhere((moments == start[None, None]).all(-1))
            np.testing.assert_array_equal(moments[where[0], where[1] + 1], end)
            found.add(int(where[1]))
    assert found == {2, 3, 4}  # the later half of 0 … 4


# --- steps ahead of a run -------------------------------------------------------------


@pytest.mark.slow
def test_loops_of_dc_follow_the_images_of_the_segment():
    changes = {"matcher__name": "dc", "matcher__dc__loop__inner": 0}
    changes |= {"matcher__dc__trajectory__epochs": 0, "dasm__budget": "per_segment"}
    problem = small_problem(**changes, ipc=20, dasm__segments=2)
    for plan in plan_segments(problem):
        assert plan.inner == 10
        assert plan.network_steps == 50  # epochs, of 2 · 10 images in one batch
        assert plan.outer_iterations == 4  # as many steps as 2 × 20
    problem = small_problem(
        **changes,
        ipc=20,
        dasm__segments=2,
        dasm__context="cumulative",
        matcher__dc__trajectory__recipe__batch=16,
    )
    steps = [plan.network_steps for plan in plan_segments(problem)]
    assert steps == [50 * 2, 50 * 3]  # 20 images, then 40


# --- steps on the inputs of networks --------------------------------------------------


@pytest.mark.parametrize("whitened", [False, True])
def test_a_step_on_pixels_is_one_on_inputs(whitened):
    images = np.random.default_rng(0).random((30, 3, 3, 2), np.float32)
    statistics = Normalization((0.4, 0.6), (0.3, 0.2))
    if whitened:
        seen = np.asarray(training.normalize(jnp.asarray(images), statistics))
        statistics = statistics._replace(whitening=fit_whitening(seen))
    pixels = jnp.asarray(images[:4])
    inputs = training.normalize(pixels, statistics)
    np.testing.assert_allclose(
        training.denormalize(inputs, statistics), pixels, atol=1e-5
    )

    def loss(inputs):
        return jnp.sum(jnp.sin(inputs) * jnp.arange(18.0).reshape(1, 3, 3, 2))

    stepped = inputs - 0.01 * jax.grad(loss)(inputs)
    grads = jax.grad(lambda x: loss(training.normalize(x, statistics)))(pixels)
    ours = pixels - 0.01 * training.input_metric(grads, statistics)
    np.testing.assert_allclose(
        ours, training.denormalize(stepped, statistics), atol=1e-5
    )
    assert np.abs(ours - pixels).max() > 1e-2
