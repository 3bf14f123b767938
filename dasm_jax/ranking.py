"""DD-Ranking's scores of a distilled set, from test accuracies.

Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation", 2025
(arXiv 2505.13300). All accuracies are fractions in [0, 1], all differences fractions
too. DD-Ranking tunes a learning rate for each accuracy; here every one is taken under
the recipe at hand, so that scores compare within a table and not with its leaderboard.
"""

import math


def hard_label_recovery(full: float, synthetic: float) -> float:
    """HLR: what hard labels of the whole real set give beyond those of the synthetic.

    Smaller is better.
    """
    return full - synthetic


def improvement_over_random(synthetic: float, random: float) -> float:
    """IOR: what the set gives beyond random real images of the same size."""
    return synthetic - random


def label_robust_score(hlr: float, ior: float, *, weight: float = 0.5) -> float:
    """LRS: α = w·IOR − (1 − w)·HLR, brought to [0, 1]."""
    return _normalized(weight * ior - (1.0 - weight) * hlr)


def augmentation_robust_score(
    ior_with: float, ior_without: float, *, weight: float = 0.5
) -> float:
    """ARS: β = γ·IOR with augmentation + (1 − γ)·IOR without, brought to [0, 1]."""
    return _normalized(weight * ior_with + (1.0 - weight) * ior_without)


def _normalized(value: float) -> float:
    """(e^x − e^−1) / (e − e^−1), which takes [−1, 1] to [0, 1]."""
    low = math.exp(-1.0)
    return (math.exp(value) - low) / (math.e - low)
