"""DD-Ranking's scores against numbers worked out by hand."""

import math

import pytest

from dasm_jax import ranking


def test_differences_have_the_right_sign():
    assert ranking.hard_label_recovery(0.9, 0.6) == pytest.approx(0.3)
    assert ranking.improvement_over_random(0.6, 0.5) == pytest.approx(0.1)


def test_label_robust_score_by_hand():
    # α = ½·0.1 − ½·0.3 = −0.1: (0.904837 − 0.367879) / (2.718282 − 0.367879)
    score = ranking.label_robust_score(0.3, 0.1)
    assert score == pytest.approx(0.228454, abs=1e-6)
    only_ior = ranking.label_robust_score(0.3, 0.1, weight=1.0)
    assert only_ior == pytest.approx((math.exp(0.1) - math.exp(-1)) / 2.350402, 1e-6)


def test_augmentation_robust_score_by_hand():
    # β = ½·0.2 + ½·0.1 = 0.15: (1.161834 − 0.367879) / 2.350402
    score = ranking.augmentation_robust_score(0.2, 0.1)
    assert score == pytest.approx(0.337795, abs=1e-6)
    assert ranking.augmentation_robust_score(0.2, 0.9, weight=1.0) == pytest.approx(
        ranking.label_robust_score(0.5, 0.2, weight=1.0)
    )


@pytest.mark.parametrize(("hlr", "ior", "score"), [(1, -1, 0.0), (-1, 1, 1.0)])
def test_scores_lie_between_0_and_1(hlr, ior, score):
    assert ranking.label_robust_score(hlr, ior) == pytest.approx(score)


def test_better_sets_score_higher():
    worse, better = (ranking.label_robust_score(h, 0.1) for h in (0.4, 0.2))
    assert better > worse
