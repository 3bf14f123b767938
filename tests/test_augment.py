"""Siamese augmentation: draws, their ranges, what one draw does; CutMix."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import augment
from dasm_jax.augment import OPS, parse_strategy

SHAPE = (3, 12, 16, 3)
EVERYTHING = parse_strategy("flip_color_crop_scale_rotate_cutout")
IMAGES = jax.random.normal(jax.random.key(0), SHAPE)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def apply(name, image, draw):
    return np.asarray(OPS[name].apply(image, jnp.asarray(draw)))


# --- strategies -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("none", ()),
        ("", ()),
        ("flip", ("flip",)),
        ("color", ("brightness", "saturation", "contrast")),
        ("cutout_crop_color", (*augment.COLOR, "crop", "cutout")),
        ("rotate_scale_flip_crop", ("flip", "crop", "scale", "rotate")),
        ("contrast_color_contrast", ("brightness", "saturation", "contrast")),
    ],
)
def test_strategy_is_put_in_the_order_of_application(text, names):
    assert parse_strategy(text) == names


@pytest.mark.parametrize("text", ["colour", "crop__flip", "none_crop", "crop_", "Crop"])
def test_unknown_operation_lists_the_known_ones(text):
    with pytest.raises(ValueError, match="unknown augmentation") as caught:
        parse_strategy(text)
    assert "color, flip, brightness, saturation, contrast, crop" in str(caught.value)


# --- draws ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "reach", "last_centre"),
    # The holes are squares of 14, 16, 10 and 15; an odd one has a centre less.
    [((28, 32), (4, 4), (28, 32)), ((20, 30), (3, 4), (20, 29))],
)
def test_ranges_of_whole_numbers(size, reach, last_centre):
    def draw(key):
        return augment.draw_augmentation(key, ("crop", "translate", "cutout"), size)

    drawn = jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(keys(1500)))
    for axis in (0, 1):
        whole = np.arange(-reach[axis], reach[axis] + 1)
        np.testing.assert_array_equal(np.unique(drawn["crop"][:, axis]), whole)
        whole = np.arange(last_centre[axis] + 1)
        np.testing.assert_array_equal(np.unique(drawn["cutout"][:, axis]), whole)
    whole = np.arange(-reach[1], reach[1] + 1)
    np.testing.assert_array_equal(np.unique(drawn["translate"]), whole)
    assert abs(np.corrcoef(*drawn["cutout"].T)[0, 1]) < 0.1  # independent numbers


def test_uniform_draws_are_independent():
    names = ("flip", "brightness", "saturation", "contrast", "rotate")
    drawn = jax.jit(
        jax.vmap(lambda key: augment.draw_augmentation(key, names, (28, 28)))
    )(keys(1500))
    values = np.stack([drawn[name] for name in names])
    assert values.min() >= 0
    assert values.max() < 1
    np.testing.assert_allclose(values.mean(1), 0.5, atol=0.04)
    np.testing.assert_allclose(np.corrcoef(values), np.eye(len(names)), atol=0.1)


# --- operations -----------------------------------------------------------------------


def test_operations_in_numpy():
    image = IMAGES[0]
    x = np.asarray(image)
    np.testing.assert_array_equal(apply("flip", image, 0.49), x[:, ::-1])
    np.testing.assert_array_equal(apply("flip", image, 0.5), x)
    mean = x.mean(2, keepdims=True)
    for u in (0.0, 0.3, 1.0):
        close = {"rtol": 1e-5, "atol": 1e-6}
        got = apply("brightness", image, u)
        np.testing.assert_allclose(got, x + u - 0.5, **close)
        got = apply("saturation", image, u)
        np.testing.assert_allclose(got, mean + 2 * u * (x - mean), **close)
        got = apply("contrast", image, u)
        np.testing.assert_allclose(got, x.mean() + (0.5 + u) * (x - x.mean()), **close)
    moved = np.zeros_like(x)  # 12×16: reach 2×2
    moved[:10, 1:] = x[2:, :-1]
    np.testing.assert_array_equal(apply("crop", image, [2, -1]), moved)
    moved = np.zeros_like(x)
    moved[:, :14] = x[:, 2:]
    np.testing.assert_array_equal(apply("translate", image, 2), moved)
    holed = x.copy()  # a hole of 6×8
    holed[:4, 12:] = 0
    np.testing.assert_array_equal(apply("cutout", image, [1, 16]), holed)


def test_scale_and_rotate_move_a_ramp_as_they_should():
    """Bilinear sampling is exact on a ramp: the value read is the place it is from."""
    side = 32
    centres = (2 * np.arange(side) + 1) / side - 1
    y, x = np.meshgrid(centres, centres, indexing="ij")
    ramps = jnp.asarray(np.stack([x, y], axis=2), jnp.float32)
    inner = np.s_[8:24, 8:24]  # reads nothing from outside the image
    for u, sx, sy in [((0.0, 1.0), 1 / 1.2, 1.2), ((1.0, 0.0), 1.2, 1 / 1.2)]:
        expected = np.stack([x * sx, y * sy], axis=2)
        got = apply("scale", ramps, u)
        np.testing.assert_allclose(got[inner], expected[inner], atol=1e-5)
    for u, angle in [(0.0, -np.pi / 12), (0.5, 0.0), (1.0, np.pi / 12)]:
        cos, sin = np.cos(angle), np.sin(angle)
        expected = np.stack([x * cos - y * sin, x * sin + y * cos], axis=2)
        got = apply("rotate", ramps, u)
        np.testing.assert_allclose(got[inner], expected[inner], atol=1e-5)
    ones = apply("scale", jnp.ones((side, side, 1)), (1.0, 1.0))
    assert ones[0, 0, 0] == 0  # zero outside, never a repeated border
    np.testing.assert_allclose(ones[8:24, 8:24], 1.0, rtol=1e-6)


def test_exactly_one_geometric_operation_is_applied():
    names = ("crop", "scale", "rotate")

    def draw(key):
        return augment.draw_augmentation(key, names, SHAPE[1:3])

    @jax.jit
    def both(draw):
        alone = [OPS[name].apply(IMAGES[0], draw[name]) for name in names]
        return augment.augment_shared(IMAGES[:1], draw, names)[0], jnp.stack(alone)

    drawn = jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(keys(60)))
    picks = drawn["geometric"]
    assert np.bincount(picks, minlength=3).min() > 10
    for i, pick in enumerate(picks[:20]):
        result, alone = both({name: value[i] for name, value in drawn.items()})
        np.testing.assert_allclose(result, alone[pick], atol=2e-5)
        for other in {0, 1, 2} - {int(pick)}:
            assert np.abs(result - alone[other]).max() > 0.1


def test_order_of_application():
    order = ("flip", "brightness", "saturation", "contrast", "crop", "cutout")
    strategy = parse_strategy("cutout_crop_color_flip")

    @jax.jit
    def both(key):
        draw = augment.draw_augmentation(key, strategy, SHAPE[1:3])
        image = IMAGES[0]
        for name in order:
            image = OPS[name].apply(image, draw[name])
        return image, augment.augment_shared(IMAGES[:1], draw, strategy)[0]

    for key in keys(3, seed=3):
        expected, result = both(key)
        np.testing.assert_allclose(result, expected, atol=1e-6)


# --- batches --------------------------------------------------------------------------


@jax.jit
def each(key, images):
    return augment.augment_each(key, images, EVERYTHING)


@jax.jit
def shared(key, images):
    draw = augment.draw_augmentation(key, EVERYTHING, images.shape[1:3])
    return augment.augment_shared(images, draw, EVERYTHING)


def test_shared_draw_moves_every_image_alike():
    key = jax.random.key(4)
    together = np.asarray(shared(key, IMAGES))
    for image, one in zip(np.asarray(IMAGES), together):
        alike = shared(key, np.stack([image] * 3))
        np.testing.assert_allclose(alike, np.stack([one] * 3), atol=1e-5)


def test_own_draw_for_each_image():
    key = jax.random.key(5)
    same = np.asarray(each(key, jnp.stack([IMAGES[0]] * 3)))
    for a, b in [(0, 1), (1, 2), (0, 2)]:
        assert np.abs(same[a] - same[b]).max() > 0.1
    # An image's draw depends on its place only, not on what stands beside it.
    others = each(key, IMAGES.at[1:].set(0.0))
    np.testing.assert_allclose(others[0], each(key, IMAGES)[0], atol=1e-6)


def test_gradient_is_that_of_an_affine_map():
    key, fn = jax.random.key(6), each
    x, y, u = (jax.random.normal(k, SHAPE) for k in keys(3, seed=1))
    at_zero = fn(key, jnp.zeros(SHAPE))
    mixed = fn(key, 0.7 * x - 1.3 * y)
    expected = 0.7 * fn(key, x) - 1.3 * fn(key, y) + 1.6 * at_zero
    np.testing.assert_allclose(mixed, expected, atol=2e-5)
    moved, pull_back = jax.vjp(lambda images: fn(key, images), x)
    change = np.asarray(fn(key, x + y) - moved, np.float64)
    slope = np.sum(np.asarray(pull_back(u)[0], np.float64) * np.asarray(y))
    assert slope == pytest.approx(np.sum(np.asarray(u) * change), rel=1e-4, abs=1e-3)


# --- CutMix ---------------------------------------------------------------------------

# Image i is i everywhere: a pixel tells whose it is.
OWNERS = jnp.tile(jnp.arange(5.0)[:, None, None, None], (1, 9, 7, 2))


@cache
def mixed(count=200):
    """The same draws under three probabilities."""

    @jax.jit
    @jax.vmap
    def mix(key):
        return [
            augment.cutmix(jax.random.clone(key), OWNERS, p) for p in (0.0, 0.5, 1.0)
        ]

    return jax.tree.map(np.asarray, mix(keys(count, seed=2)))


def test_cutmix_share_and_partners_are_those_of_the_pixels():
    always = mixed()[2]
    own = np.arange(5)
    for images, partners, share in zip(*always):
        np.testing.assert_array_equal(np.sort(partners), own)
        for i, (image, partner) in enumerate(zip(images, partners)):
            assert set(np.unique(image)) <= {float(i), float(partner)}
            if partner != i:
                assert share == pytest.approx((image == i).mean(), abs=1e-6)
    assert (always.share < 1).mean() > 0.8  # a box may be empty
    assert always.share.min() < 0.3
    assert len(np.unique(always.partners, axis=0)) > 60  # of 120 permutations


def test_cutmix_probability():
    never, half, always = mixed()
    assert (never.share == 1).all()
    np.testing.assert_array_equal(never.images, np.stack([OWNERS] * 200))
    used = half.share < 1
    assert 0.4 < used.sum() / (always.share < 1).sum() < 0.6
    np.testing.assert_array_equal(half.images[used], always.images[used])


def test_cutmix_box_in_numpy():
    for lam, row, column in [(0.0, 0, 0), (0.19, 8, 2), (0.5, 4, 3), (0.99, 4, 6)]:
        bounds = []
        for side, centre in ((9, row), (7, column)):
            half = int(np.floor(side * np.sqrt(1 - lam))) // 2
            bounds.append((max(centre - half, 0), min(centre + half, side)))
        (top, bottom), (left, right) = bounds
        got = augment.cutmix_box(
            (9, 7), jnp.float32(lam), (jnp.int32(row), jnp.int32(column))
        )
        assert [int(b) for b in got] == [top, left, bottom, right]
