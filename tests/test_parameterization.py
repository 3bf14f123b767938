"""Multi-formation: how many images are decoded, which, and what they look like."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax.parameterization import make_parameterization, pack_tiles, padded_side


def stored(count, *shape, seed=0):
    return jax.random.uniform(jax.random.key(seed), (count, *shape))


def enlarge(tile, side):
    """One axis of a bilinear enlargement with half-pixel centres, border repeated."""
    place = (np.arange(side) + 0.5) * len(tile) / side - 0.5
    place = np.clip(place, 0, len(tile) - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, len(tile) - 1)
    share = (place - low).reshape(-1, *[1] * (tile.ndim - 1))
    return tile[low] * (1 - share) + tile[high] * share


def decoded_tile(image, factor, row, column):
    height, width, channels = image.shape
    tile_h, tile_w = -(-height // factor), -(-width // factor)
    padded = np.full((tile_h * factor, tile_w * factor, channels), 0.5)
    padded[:height, :width] = image
    rows, columns = row * tile_h, column * tile_w
    tile = padded[rows : rows + tile_h, columns : columns + tile_w]
    tall = enlarge(tile, height)
    return enlarge(tall.swapaxes(0, 1), width).swapaxes(0, 1)


@pytest.mark.parametrize("kind", ["single", "multi", "bound"])
def test_factor_1_is_the_identity(kind):
    parameterization = make_parameterization(kind, 1, (5, 6))
    pixels = stored(4, 5, 6, 2)
    images = parameterization.decode(pixels, parameterization.tiles(4))
    np.testing.assert_array_equal(images, pixels)


@pytest.mark.parametrize(
    ("kind", "factor", "count", "bound", "of_each"),
    [
        ("single", 2, 3, 128, [4, 4, 4]),
        ("single", 3, 2, 128, [9, 9]),
        ("multi", 2, 3, 128, [5, 5, 5]),  # 1 + 4
        ("multi", 3, 2, 128, [14, 14]),  # 1 + 4 + 9
        ("bound", 2, 3, 128, [4, 4, 4]),
        # 20 − 3 leaves 17: one takes 9. 11 − 2 leaves 9: both take 4.
        ("bound", 3, 3, 20, [9, 4, 4]),
        ("bound", 2, 5, 10, [4, 1, 1, 1, 1]),
        ("bound", 2, 5, 5, [1, 1, 1, 1, 1]),
    ],
)
def test_how_many_images_each_stored_one_gives(kind, factor, count, bound, of_each):
    parameterization = make_parameterization(kind, factor, (12, 12), bound=bound)
    formation = parameterization.tiles(count)
    assert np.bincount(formation.sources, minlength=count).tolist() == of_each
    assert len(set(zip(*formation))) == sum(of_each)  # no image twice
    assert {field.dtype for field in formation} == {np.dtype(np.int32)}
    pixels = jax.ShapeDtypeStruct((count, 12, 12, 1), jnp.float32)
    images = jax.eval_shape(parameterization.decode, pixels, formation)
    assert images.shape == (sum(of_each), 12, 12, 1)


@pytest.mark.parametrize("count", [1, 10, 31, 40, 100, 128])
def test_bound_leaves_nobody_out_and_stays_below(count):
    formation = make_parameterization("bound", 3, (12, 12)).tiles(count)
    assert len(formation.sources) <= 128
    np.testing.assert_array_equal(np.unique(formation.sources), np.arange(count))


def test_unknown_kind():
    with pytest.raises(ValueError, match="'double'; known: single, multi, bound"):
        make_parameterization("double", 2, (8, 8))


@pytest.mark.parametrize(
    ("kind", "factor", "size"), [("single", 3, (28, 28)), ("multi", 3, (7, 10))]
)
def test_decode_is_a_bilinear_enlargement_of_padded_tiles(kind, factor, size):
    parameterization = make_parameterization(kind, factor, size)
    pixels = stored(2, *size, 2)
    images = jax.jit(parameterization.decode)(pixels, parameterization.tiles(2))
    expected = [
        decoded_tile(np.asarray(image, np.float64), f, row, column)
        for f in ([factor] if kind == "single" else range(1, factor + 1))
        for row in range(f)
        for column in range(f)
        for image in pixels
    ]
    np.testing.assert_allclose(images, expected, atol=2e-6)


@pytest.mark.parametrize("kind", ["single", "multi", "bound"])
def test_choosing_before_decoding_equals_choosing_after(kind):
    parameterization = make_parameterization(kind, 2, (9, 8), bound=9)
    pixels = stored(3, 9, 8, 1)
    formation = parameterization.tiles(3)
    images = jax.jit(parameterization.decode)(pixels, formation)
    index = jnp.array([5, 0, len(images) - 1, 5])

    @jax.jit
    def choose_first(pixels, index):
        return parameterization.decode(pixels, formation.take(index))

    np.testing.assert_allclose(choose_first(pixels, index), images[index], atol=1e-6)


def test_packed_constant_images_come_back():
    values = np.arange(8.0).reshape(2, 2, 2)  # image n, tile row, tile column
    images = jnp.asarray(
        np.broadcast_to(values[..., None, None, None], (2, 2, 2, 8, 6, 1))
    )
    parameterization = make_parameterization("single", 2, (8, 6))
    formation = parameterization.tiles(2)
    decoded = np.asarray(
        jax.jit(parameterization.decode)(pack_tiles(images), formation)
    )
    np.testing.assert_allclose(
        decoded.min((1, 2, 3)), decoded.max((1, 2, 3)), atol=1e-6
    )
    # Tile by tile, each over all stored images.
    np.testing.assert_allclose(decoded[:, 0, 0, 0], [0, 4, 1, 5, 2, 6, 3, 7], atol=1e-6)


def test_packed_constants_are_cut_where_tiles_reach_over_the_border():
    values = np.arange(9.0, dtype=np.float32).reshape(1, 3, 3, 1, 1, 1)
    packed = pack_tiles(jnp.asarray(np.broadcast_to(values, (1, 3, 3, 28, 28, 1))))
    assert packed.shape == (1, 28, 28, 1)
    whole = np.kron(np.arange(9.0).reshape(3, 3), np.ones((10, 10)))
    np.testing.assert_allclose(packed[0, ..., 0], whole[:28, :28], atol=1e-5)


@pytest.mark.parametrize(("side", "factor"), [(24, 2), (28, 3), (7, 2)])
def test_packing_keeps_the_nearest_pixels_of_each_image(side, factor):
    """As torch.nn.functional.interpolate(mode="nearest"): ⌊i · side / tile⌋."""
    draw = np.random.default_rng(0).random
    images = draw((1, factor, factor, side, side, 1), np.float32)
    packed = np.asarray(pack_tiles(jnp.asarray(images)))[0, ..., 0]
    tile = -(-side // factor)
    kept = [math.floor(i * side / tile) for i in range(tile)]
    for row in range(factor):
        for column in range(factor):
            small = images[0, row, column, ..., 0][np.ix_(kept, kept)]
            place = packed[row * tile :, column * tile :][:tile, :tile]
            np.testing.assert_array_equal(place, small[: len(place), : place.shape[1]])


def gradient_of_sum(parameterization, formation, count):
    @jax.jit
    @jax.grad
    def gradient(pixels):
        return parameterization.decode(pixels, formation).sum()

    return np.asarray(gradient(stored(count, 28, 28, 1)))


@pytest.mark.parametrize(
    ("kind", "factor"), [("single", 3), ("multi", 2), ("bound", 2)]
)
def test_every_stored_pixel_has_a_gradient(kind, factor):
    parameterization = make_parameterization(kind, factor, (28, 28), bound=10)
    formation = parameterization.tiles(3)
    gradient = gradient_of_sum(parameterization, formation, 3)
    assert gradient.min() > 0.1


def test_a_tile_moves_its_own_pixels_only():
    parameterization = make_parameterization("single", 3, (28, 28))
    formation = parameterization.tiles(2)
    position = 2 * (1 * 3 + 2) + 1  # tile in row 1, column 2 of stored image 1
    chosen = formation.take(np.array([position]))
    gradient = gradient_of_sum(parameterization, chosen, 2)
    expected = np.zeros((2, 28, 28, 1), bool)
    expected[1, 10:20, 20:28] = True  # columns 28 and 29 are padding
    np.testing.assert_array_equal(gradient != 0, expected)


def test_padded_side():
    assert [padded_side(28, f) for f in (1, 2, 3, 5)] == [28, 28, 30, 30]
