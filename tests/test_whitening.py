"""ZCA: against its definition, there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import whitening


def some_images(count=400, shape=(4, 3, 2)):
    """Correlated pixels whose means and scales differ."""
    rng = np.random.default_rng(0)
    size = int(np.prod(shape))
    mix = rng.normal(size=(size, size)) * np.geomspace(0.05, 2, size)
    images = rng.normal(size=(count, size)) @ mix + rng.normal(size=size)
    return images.reshape(count, *shape).astype(np.float32)


def spectrum(images):
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    return np.linalg.eigvalsh(np.cov(flat.T))


def test_it_is_zca_by_definition():
    images = some_images()
    flat = images.reshape(400, -1).astype(np.float64)
    u, s, _ = np.linalg.svd(np.cov(flat.T))
    fitted = whitening.fit_whitening(images, epsilon=0.2)
    root = np.diag((s + 0.2) ** -0.5)
    np.testing.assert_allclose(fitted.mean, flat.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(fitted.matrix, u @ root @ u.T, atol=1e-5)
    np.testing.assert_allclose(
        fitted.matrix @ fitted.inverse, np.eye(flat.shape[1]), atol=1e-4
    )
    for field in fitted:
        assert field.dtype == np.float32
    expected = (flat - flat.mean(axis=0)) @ (u @ root @ u.T)
    ours = whitening.whiten(jnp.asarray(images), fitted)
    np.testing.assert_allclose(
        np.asarray(ours).reshape(400, -1), expected, rtol=1e-4, atol=1e-4
    )


def test_matrices_are_symmetric():
    for matrix in whitening.fit_whitening(some_images())[1:]:
        np.testing.assert_allclose(matrix, matrix.T, rtol=1e-6, atol=1e-6)


def test_the_spectrum_is_flattened():
    images = some_images()
    before = spectrum(images)
    whitened = whitening.whiten(jnp.asarray(images), whitening.fit_whitening(images))
    np.testing.assert_allclose(spectrum(whitened), before / (before + 0.1), atol=1e-4)
    np.testing.assert_allclose(np.asarray(whitened).mean(axis=0), 0, atol=1e-4)


def test_there_and_back():
    images, others = some_images()[:200], some_images()[200:]
    fitted = whitening.fit_whitening(images)
    there = jax.jit(whitening.whiten)(jnp.asarray(others), fitted)
    back = jax.jit(whitening.unwhiten)(there, fitted)
    assert there.shape == others.shape
    assert not np.allclose(there, others, atol=0.1)
    np.testing.assert_allclose(back, others, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 7, 400, 1000])
def test_chunks_make_no_difference(monkeypatch, rows):
    whole = whitening.fit_whitening(some_images())
    monkeypatch.setattr(whitening, "ROWS_AT_ONCE", rows)
    for ours, theirs in zip(whitening.fit_whitening(some_images()), whole):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_fewer_images_than_pixels_and_equal_ones_are_no_trouble():
    few = whitening.fit_whitening(some_images(count=5))
    same = whitening.fit_whitening(np.ones((1, 2, 2, 1), np.float32))
    assert all(np.isfinite(field).all() for field in few)
    np.testing.assert_allclose(same.matrix, np.eye(4) * 0.1**-0.5, rtol=1e-6)


def test_a_small_variance_on_a_large_mean_is_not_lost():
    images = some_images()
    shifted = whitening.fit_whitening(images + np.float32(256))
    fitted = whitening.fit_whitening(images)
    np.testing.assert_allclose(shifted.matrix, fitted.matrix, atol=1e-3)
