"""How loops are compiled on a device: rolled into one program, or written out.

XLA's CPU convolutions are about five times slower inside loop bodies, so on CPU loops
are written out and the driver calls one step at a time; GPU and TPU get ``lax.scan``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dasm_jax.mesh import Mesh, split_rows


class Loop(NamedTuple):
    """How loops are compiled, and how many steps one call of a program runs."""

    rolled: bool
    steps_per_call: int
    mesh: Mesh | None = None  # devices that ``over`` is split across; None: one

    def calling(self, steps: int) -> "Loop":
        """The same for a program of ``steps`` steps; one step where written out."""
        return self._replace(steps_per_call=steps) if self.rolled else self

    def over(self, body: Callable[..., Any], xs: Any, *shared: Any) -> Any:
        """Stack ``body(x, *shared)`` for every ``x`` of the leading axis of ``xs``.

        On a mesh every device takes a share of them (``mesh.split_rows``).
        """

        def each(xs: Any, *shared: Any) -> Any:
            if self.rolled:
                return jax.lax.map(lambda x: body(x, *shared), xs)
            leaves, structure = jax.tree.flatten(xs)
            rows = [structure.unflatten(row) for row in zip(*leaves)]
            return _stack([body(x, *shared) for x in rows])

        return split_rows(self.mesh, each, xs, *shared)

    def repeat(
        self, body: Callable[[Any], tuple[Any, Any]], carry: Any, times: int
    ) -> tuple[Any, Any]:
        """``carry, y = body(carry)``, so many times; returns carry and stacked y."""
        if self.rolled:
            return jax.lax.scan(lambda c, _: body(c), carry, None, length=times)
        ys = []
        for _ in range(times):
            # Not lax.scan(unroll=True): with one step that is a loop all the same.
            carry, y = body(carry)
            ys.append(y)
        return carry, _stack(ys)

    def fold(self, body: Callable[[Any, Any], Any], carry: Any, xs: Any) -> Any:
        """``carry = body(carry, x)`` for every ``x`` of the leading axis of ``xs``."""
        if self.rolled:
            return jax.lax.scan(lambda c, x: (body(c, x), None), carry, xs)[0]
        leaves, structure = jax.tree.flatten(xs)
        for row in zip(*leaves):
            carry = body(carry, structure.unflatten(row))
        return carry


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def loop_for(platform: str, steps_per_call: int, mesh: Mesh | None = None) -> Loop:
    """The loop that is fastest on ``platform`` ('cpu', 'gpu', 'tpu')."""
    if platform == "cpu":
        return Loop(rolled=False, steps_per_call=1, mesh=mesh)
    return Loop(rolled=True, steps_per_call=steps_per_call, mesh=mesh)
