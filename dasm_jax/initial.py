"""Where synthetic images start: real images of the pool, or noise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from dasm_jax.parameterization import pack_tiles
from dasm_jax.training import to_unit

# (key, images of one class's pool u8[P, H, W, C], stored images n, factor)
#   -> f32[n, H, W, C] in [0, 1]
InitFn = Callable[[Key[Array, ""], UInt8[np.ndarray, "P H W C"], int, int], Array]


def _choose(key: Key[Array, ""], available: int, wanted: int) -> np.ndarray:
    """Positions without replacement; a pool that is too small is gone round again."""
    order = np.asarray(jax.random.permutation(key, available))
    return np.resize(order, wanted)


def mix(
    key: Key[Array, ""], pool: UInt8[np.ndarray, "P H W C"], count: int, factor: int
) -> Float[Array, "n H W C"]:
    """IDC's start: f² real images shrunk into the tiles of each stored one."""
    chosen = pool[_choose(key, len(pool), count * factor**2)]
    images = to_unit(jnp.asarray(chosen))
    images = images.reshape(count, factor, factor, *pool.shape[1:])
    return pack_tiles(images)


def random_real(
    key: Key[Array, ""], pool: UInt8[np.ndarray, "P H W C"], count: int, factor: int
) -> Float[Array, "n H W C"]:
    """One real image, full size, per stored one."""
    return to_unit(jnp.asarray(pool[_choose(key, len(pool), count)]))


def kmeans(
    key: Key[Array, ""], pool: UInt8[np.ndarray, "P H W C"], count: int, factor: int
) -> Float[Array, "n H W C"]:
    """As 'mix', with the real images nearest to the centres of pixel k-means."""
    from sklearn.cluster import MiniBatchKMeans

    wanted = count * factor**2
    if len(pool) <= wanted:
        return mix(key, pool, count, factor)
    flat = pool.reshape(len(pool), -1).astype(np.float32) / 255.0
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    clusters = MiniBatchKMeans(wanted, random_state=seed, n_init="auto").fit(flat)
    distances = clusters.transform(flat)  # [P, wanted]
    chosen: list[int] = []
    for centre in range(wanted):  # one image is not taken for two centres
        distances[chosen[-1:], :] = np.inf
        chosen.append(int(np.argmin(distances[:, centre])))
    images = to_unit(jnp.asarray(pool[np.array(chosen)]))
    return pack_tiles(images.reshape(count, factor, factor, *pool.shape[1:]))


def noise(
    key: Key[Array, ""], pool: UInt8[np.ndarray, "P H W C"], count: int, factor: int
) -> Float[Array, "n H W C"]:
    """Uniform noise; no real pixel enters the set."""
    return jax.random.uniform(key, (count, *pool.shape[1:]))


INITS: dict[str, InitFn] = {
    "mix": mix,
    "random": random_real,
    "kmeans": kmeans,
    "uncovered": mix,  # of images that are chosen for it from segment 2 on (covering)
    "noise": noise,
}
