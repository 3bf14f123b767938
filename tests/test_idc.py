"""With one segment the program is IDC: against a slow, literal loop.

The loop below does what the public code does, one class after another: match, one SGD
step with momentum on the *whole* pixel tensor, and after all classes the network step.
It shares the derived keys with the program, and nothing else of its driver, optimiser
or derivatives: gradients are plain double backward.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from dasm_jax import augment, initial, sampling, training
from dasm_jax.dasm import run_dasm
from dasm_jax.keys import Use, key_for
from dasm_jax.problem import make_problem
from dasm_jax.recipes import recipe_from
from dasm_jax.settings import from_config
from tests.small import slow_but, small_dataset

OUTER, INNER = 3, 4


def config(schedule):
    config = default.get_config()
    config.devices = 1
    config.ipc = 2
    config.network.width, config.network.depth = 4, 2
    config.synthetic.factor = 2
    idc = config.matcher.idc
    idc.real_batch, idc.synthetic_batch = 8, 6
    idc.image.lr, idc.image.base_size = 0.5, 8
    idc.image.schedule = schedule
    idc.loop.niter, idc.loop.inner = OUTER, INNER
    idc.trajectory.n_data, idc.trajectory.recipe.batch = 30, 16
    config.dasm.segments = 1
    return config


def literal_idc(problem):
    s, net = problem.settings, problem.network
    m = s.matcher.idc
    root = jax.random.key(s.seed)
    n_classes = problem.dataset.n_classes
    images, labels = (jnp.asarray(x) for x in problem.dataset.train)
    strategy = augment.parse_strategy(m.augment)
    decoder = problem.parameterization
    full_rate = m.image.lr * s.ipc / 10 * (8 / m.image.base_size) ** 2

    def cross_entropy(params, x, label):
        logits = net.apply(params, x)
        return -jax.nn.log_softmax(logits)[:, label].mean()

    @jax.jit
    def class_distance(pixels, params, real, label, key):
        choice_key, augment_key = jax.random.split(key)
        mine = jax.lax.dynamic_slice_in_dim(pixels, label * s.ipc, s.ipc)
        formation = decoder.tiles(s.ipc)
        count = len(formation.sources)
        chosen = jnp.argsort(jax.random.uniform(choice_key, (count,)))
        decoded = decoder.decode(mine, formation)[chosen[: m.synthetic_batch]]
        draw = augment.draw_augmentation(augment_key, strategy, (8, 8))

        def prepare(x):
            x = training.normalize(x, problem.statistics)
            return augment.augment_shared(x, draw, strategy)

        wanted = jax.grad(cross_entropy)(params, prepare(real), label)
        ours = jax.grad(cross_entropy)(params, prepare(decoded), label)
        return sum(
            jnp.sum((ours[f"conv_{i}"]["kernel"] - wanted[f"conv_{i}"]["kernel"]) ** 2)
            for i in range(2)
        )

    pool = sampling.make_table(problem.class_indices)
    everything = sampling.prefix_table(len(labels), len(labels))
    pool_place = sampling.start_sampler(pool)
    net_place, net_step = sampling.start_sampler(everything), 0
    # The gradient of the network is read off a plain step of the program;
    # momentum and weight decay are restated below.
    standing = recipe_from(m.trajectory.recipe)._replace(
        learning_rate=1.0, momentum=0.0, weight_decay=0.0
    )
    plain = jax.jit(training.make_train_step(net, standing, problem.statistics))
    pixels = jnp.concatenate(
        [
            initial.mix(
                key_for(root, Use.IMAGE_INIT, 1, c),
                problem.dataset.train.images[problem.class_indices[c]],
                s.ipc,
                s.synthetic.factor,
            )
            for c in range(n_classes)
        ]
    )
    velocity, distances, step = jnp.zeros_like(pixels), [], 0
    for outer in range(OUTER):
        params = net.init(key_for(root, Use.NETWORK_INIT, 1, outer))
        velocity_net = jax.tree.map(jnp.zeros_like, params)
        pixels = jnp.clip(pixels, 0.0, 1.0)
        learning_rate = full_rate
        if m.image.schedule == "cosine":  # from here on, of moves begun before too
            learning_rate *= (1 + math.cos(math.pi * outer / OUTER)) / 2
        for _ in range(INNER):
            pool_place, index = sampling.next_batch(
                key_for(root, Use.REAL_ORDER, 1, 0), pool_place, pool, 8
            )
            match_key = key_for(root, Use.MATCH, 1, step)
            for c in range(n_classes):
                value, grad = jax.value_and_grad(class_distance)(
                    pixels,
                    params,
                    images[index[c]].astype(jnp.float32) / 255,
                    jnp.int32(c),
                    jax.random.fold_in(match_key, c),
                )
                velocity = m.image.momentum * velocity + grad
                pixels = pixels - learning_rate * velocity
                distances.append(float(value))
            for _ in range(2):  # ceil(30 / 16)
                state = training.start_training(params, standing, net_place, net_step)
                state, _ = plain(
                    key_for(root, Use.TRAJECTORY, 1, 0), state, problem.real, everything
                )
                grads = jax.tree.map(lambda a, b: a - b, params, state.params)
                velocity_net = jax.tree.map(
                    lambda v, g, p: 0.9 * v + g + 5e-4 * p, velocity_net, grads, params
                )
                params = jax.tree.map(lambda p, v: p - 0.01 * v, params, velocity_net)
                net_place, net_step = state.sampler, net_step + 1
            step += 1
    final = jnp.clip(pixels, 0.0, 1.0)
    shape = (n_classes, s.ipc, *final.shape[1:])
    return np.asarray(final).reshape(shape), np.array(distances).reshape(-1, n_classes)


@pytest.mark.parametrize("schedule", slow_but(["constant", "cosine"], "constant"))
def test_one_segment_is_the_public_loop(schedule):
    problem = make_problem(from_config(config(schedule)), small_dataset())
    seen = []
    (result,) = run_dasm(problem, on_outer=lambda p: seen.append(p.distances))
    pixels, distances = literal_idc(problem)
    np.testing.assert_allclose(np.concatenate(seen), distances, rtol=2e-3)
    np.testing.assert_allclose(result.pixels, pixels, atol=2e-5)
    # The images moved, and some were clipped: the comparison sees both.
    assert ((pixels == 0) | (pixels == 1)).mean() > 0.01
