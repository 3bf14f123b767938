"""Surrogate objectives. Each is three pure functions, a ``Matcher``.

Segments and pools (``dasm.py``) wrap every one of them unchanged.
"""

from dasm_jax.matching.features import make_alignment_matcher, make_embedding_matcher
from dasm_jax.matching.gradient import (
    LAYERS,
    METRICS,
    absolute_distance,
    convolution_kernels,
    cosine_distance,
    every_parameter,
    kernels,
    make_gradient_matcher,
    make_parameter_gradient,
    mean_absolute_distance,
    squared_distance,
)
from dasm_jax.matching.matcher import ApplyFn, Matcher, mean_cross_entropy
from dasm_jax.matching.trajectory import Lesson, Span, make_trajectory_matcher

__all__ = [
    "LAYERS",
    "METRICS",
    "ApplyFn",
    "Lesson",
    "Matcher",
    "Span",
    "absolute_distance",
    "convolution_kernels",
    "cosine_distance",
    "every_parameter",
    "kernels",
    "make_alignment_matcher",
    "make_embedding_matcher",
    "make_gradient_matcher",
    "make_parameter_gradient",
    "make_trajectory_matcher",
    "mean_absolute_distance",
    "mean_cross_entropy",
    "squared_distance",
]
