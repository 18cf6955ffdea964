import numpy as np
import pytest
from scipy import stats

from tl_lightning.errors import UserError
from tl_lightning.study.intervals import Interval
from tl_lightning.study.statistics import (
    all_of,
    bootstrap_interval,
    decide,
    differences,
    equivalence,
    holm,
    mean_interval,
    paired_difference,
    paired_ratio,
    shared,
    slope,
    spearman,
    unpaired_difference,
)

STUDIES = 2000


def seeds(values):
    return dict(enumerate(values))


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_mean_interval_is_scipys(n, confidence):
    values = np.random.default_rng(n).normal(0.8, 0.05, n)
    interval = mean_interval(values, confidence)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(tuple(expected))
    assert interval.n == n
    assert interval.anecdotal == (n < 3)


def test_one_value_has_no_bounds_and_is_anecdotal():
    interval = mean_interval([0.7])
    assert interval.mean == 0.7
    assert np.isnan([interval.low, interval.high]).all()
    assert interval.anecdotal
    assert "anecdotal" in interval.format()
    assert mean_interval([0.7, 0.8, 0.9]).format() == "0.800 [0.552, 1.048] (n = 3)"


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, np.nan], [np.inf, 1.0]])
def test_values_that_are_none_or_not_finite_are_refused(values):
    with pytest.raises(UserError):
        mean_interval(values)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_cover_the_truth_in_95_of_100_studies(n):
    rng = np.random.default_rng(100 + n)
    seed_effect = rng.normal(0, 0.05, (STUDIES, n))
    a = 0.82 + seed_effect + rng.normal(0, 0.02, (STUDIES, n))
    b = 0.80 + seed_effect + rng.normal(0, 0.02, (STUDIES, n))
    means = [mean_interval(row) for row in a]
    gaps = [paired_difference(x, y).difference for x, y in zip(a, b, strict=True)]
    assert 0.93 <= np.mean([i.low <= 0.82 <= i.high for i in means]) <= 0.97
    assert 0.93 <= np.mean([i.low <= 0.02 <= i.high for i in gaps]) <= 0.97


@pytest.mark.parametrize("n", [3, 5, 10])
def test_without_a_difference_one_study_in_twenty_shows_one(n):
    rng = np.random.default_rng(200 + n)
    verdicts = [paired_difference(*pair).verdict for pair in rng.normal(0, 1, (STUDIES, 2, n))]
    assert 0.03 <= np.mean([verdict != "no difference shown" for verdict in verdicts]) <= 0.07


def test_slope_interval_covers_the_truth():
    rng = np.random.default_rng(3)
    x = np.log10([10, 50, 500, 5000])
    seed_of = np.repeat(np.arange(5), 4)
    independent, grouped = [], []
    for _ in range(STUDIES):
        independent.append(slope(x, -2.0 * x + rng.normal(0, 1, 4)))
        shift = np.repeat(rng.normal(-2.0, 0.5, 5), 4)  # each seed has its own slope
        points = np.tile(x, 5)
        grouped.append(slope(points, shift * points + rng.normal(0, 0.1, 20), groups=seed_of.tolist()))
    assert 0.93 <= np.mean([i.low <= -2.0 <= i.high for i in independent]) <= 0.97
    assert 0.93 <= np.mean([i.low <= -2.0 <= i.high for i in grouped]) <= 0.97
    assert grouped[0].n == 5


def test_paired_difference_is_scipys_paired_test():
    rng = np.random.default_rng(0)
    a = rng.normal(0.83, 0.03, 5)
    b = a - rng.normal(0.02, 0.01, 5)
    comparison = paired_difference(seeds(a), dict(reversed(seeds(b).items())))
    expected = stats.ttest_rel(a, b)
    assert comparison.p_value == pytest.approx(expected.pvalue)
    bounds = expected.confidence_interval(0.95)
    assert (comparison.difference.low, comparison.difference.high) == pytest.approx(tuple(bounds))
    assert comparison.verdict == "higher"
    assert paired_difference(seeds(b), seeds(a)).verdict == "lower"
    assert paired_difference(a, b) == comparison


def test_unpaired_difference_is_welchs():
    random = np.random.default_rng(3)
    a, b = random.normal(1.0, 0.3, 5), random.normal(0.0, 2.0, 8)
    interval = unpaired_difference(a, b, 0.9)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    assert (interval.low, interval.high) == pytest.approx(tuple(expected))
    assert (interval.mean, interval.n) == (pytest.approx(a.mean() - b.mean()), 5)


def test_unpaired_difference_of_single_or_equal_values():
    assert np.isnan(unpaired_difference([1.0], [0.0, 2.0]).low)
    assert unpaired_difference([1.0, 1.0], [3.0, 3.0]) == Interval(-2.0, -2.0, -2.0, 2)


def test_verdict_agrees_with_the_p_value():
    rng = np.random.default_rng(1)
    for a, b in rng.normal(0, 1, (500, 2, 4)) + np.array([[[0.8], [0.0]]]):
        comparison = paired_difference(a, b)
        assert (comparison.verdict != "no difference shown") == (comparison.p_value < 0.05)


@pytest.mark.parametrize(("n", "anecdotal"), [(1, True), (2, True), (3, False)])
def test_fewer_than_three_pairs_are_anecdotal(n, anecdotal):
    comparison = paired_difference(seeds(np.linspace(0.8, 0.9, n)), seeds(np.linspace(0.7, 0.72, n)))
    assert comparison.anecdotal is anecdotal
    assert comparison.n == n
    if n == 1:
        assert comparison.verdict == "no difference shown"
        assert np.isnan(comparison.p_value)


def test_unpaired_values_are_refused_by_name():
    with pytest.raises(UserError, match="unpaired: 2, 7"):
        paired_difference({0: 0.8, 1: 0.7, 2: 0.9}, {0: 0.8, 1: 0.7, 7: 0.9})
    with pytest.raises(UserError, match="3 and 2"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(UserError, match="both sides or on none"):
        paired_difference({0: 1.0}, [1.0])
    a, b = shared({0: 0.8, 1: 0.7, 2: 0.9}, {2: 0.6, 0: 0.5})
    assert paired_difference(a, b).n == 2


def test_differences_without_spread():
    same = paired_difference([0.5, 0.7, 0.9], [0.5, 0.7, 0.9])
    assert (same.verdict, same.p_value) == ("no difference shown", 1.0)
    fixed = paired_difference([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    assert (fixed.verdict, fixed.p_value) == ("higher", 0.0)
    assert (fixed.difference.low, fixed.difference.high) == (2.0, 2.0)


def test_interaction_is_a_difference_of_differences():
    gain_few = differences({0: 0.9, 1: 0.8, 2: 0.85}, {0: 0.5, 1: 0.45, 2: 0.5})
    gain_many = differences({2: 0.95, 1: 0.93, 0: 0.94}, {0: 0.9, 1: 0.9, 2: 0.9})
    assert paired_difference(gain_few, gain_many).verdict == "higher"


def test_ratio_is_symmetric_and_refuses_zero():
    a, b = [10.0, 12.0, 9.0], [2.0, 2.5, 1.7]
    there, back = paired_ratio(a, b), paired_ratio(b, a)
    assert there.mean == pytest.approx(1 / back.mean)
    assert there.low == pytest.approx(1 / back.high)
    assert there.low < np.mean(np.divide(a, b)) < there.high
    with pytest.raises(UserError):
        paired_ratio([1.0, 0.0], [1.0, 1.0])


def test_holm_steps_down_and_keeps_the_family_error():
    rng = np.random.default_rng(4)
    false_alarms, naive = 0, 0
    for study in rng.normal(0, 1, (400, 8, 5)):
        family = {str(i): paired_difference(row, np.zeros(5)) for i, row in enumerate(study)}
        naive += any(c.verdict != "no difference shown" for c in family.values())
        false_alarms += any(c.verdict != "no difference shown" for c in holm(family).values())
    assert naive / 400 > 0.25
    assert false_alarms / 400 <= 0.085

    p = np.sort([c.p_value for c in family.values()])
    adjusted = sorted(c.p_adjusted for c in holm(family).values())
    by_hand = [max(min(1, (8 - j) * p[j]) for j in range(i + 1)) for i in range(8)]
    assert adjusted == pytest.approx(by_hand)


def test_holm_leaves_single_pairs_outside_the_family():
    strong = paired_difference([1.0, 1.1, 1.2, 1.05], [0.0, 0.01, 0.0, 0.02])
    corrected = holm({"strong": strong, "single": paired_difference([1.0], [0.0])})
    assert corrected["strong"].p_adjusted == strong.p_value
    assert corrected["single"].verdict == "no difference shown"
    assert holm({}) == {}


def test_equivalence_is_two_one_sided_tests():
    rng = np.random.default_rng(5)
    a = rng.normal(0.90, 0.004, 5)
    b = rng.normal(0.90, 0.004, 5)
    result = equivalence(a, b, margin=0.02)
    greater = stats.ttest_1samp(a - b, -0.02, alternative="greater").pvalue
    less = stats.ttest_1samp(a - b, 0.02, alternative="less").pvalue
    assert result.p_value == pytest.approx(max(greater, less))
    assert result.verdict == "equivalent"
    assert -0.02 < result.difference.low < result.difference.high < 0.02
    assert equivalence(a, b, margin=0.0005).verdict == "not shown equivalent"
    assert equivalence([0.9], [0.9], margin=0.02).verdict == "not shown equivalent"
    with pytest.raises(UserError, match="margin"):
        equivalence(a, b, margin=0.0)


def test_equivalence_at_the_margin_errs_in_one_of_twenty():
    rng = np.random.default_rng(6)
    wrong = [equivalence(row, np.zeros(5), margin=3.0).verdict for row in rng.normal(3.0, 1.0, (STUDIES, 5))]
    assert 0.03 <= np.mean([verdict == "equivalent" for verdict in wrong]) <= 0.07


def test_bootstrap_interval_is_scipys_bca_and_seeded():
    values = np.random.default_rng(7).exponential(1.0, 60)
    interval = bootstrap_interval(values, np.median, seed=3, resamples=500)
    expected = stats.bootstrap(
        (values,), np.median, n_resamples=500, method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx(tuple(expected))
    assert interval == bootstrap_interval(values, np.median, seed=3, resamples=500)
    assert interval != bootstrap_interval(values, np.median, seed=4, resamples=500)
    assert interval.mean == np.median(values)


def test_bootstrap_of_constant_or_single_values():
    assert bootstrap_interval([0.5] * 8) == Interval(0.5, 0.5, 0.5, 8)
    assert np.isnan(bootstrap_interval([0.5]).low)


def test_bootstrap_interval_covers_the_mean():
    rng = np.random.default_rng(8)
    studies = [bootstrap_interval(row, resamples=400) for row in rng.normal(0, 1, (400, 40))]
    assert 0.90 <= np.mean([i.low <= 0 <= i.high for i in studies]) <= 0.98


def test_spearman_is_scipys_and_its_interval_covers():
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(2, 12))
    assert spearman(x, y).mean == pytest.approx(stats.spearmanr(x, y).statistic)
    ties = spearman([1, 1, 2, 3, 3, 4], [2, 1, 2, 5, 4, 4])
    assert ties.mean == pytest.approx(stats.spearmanr([1, 1, 2, 3, 3, 4], [2, 1, 2, 5, 4, 4]).statistic)
    assert -1 <= ties.low <= ties.mean <= ties.high <= 1
    assert spearman(x, y, seed=1) == spearman(x, y, seed=1)

    pairs = rng.normal(size=(300, 2, 15))
    covered = [i.low <= 0 <= i.high for i in (spearman(*pair, resamples=400) for pair in pairs)]
    assert 0.89 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2], [2, 1]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 2]), ([1, 2, np.nan], [1, 2, 3])]
)
def test_spearman_refuses_what_has_no_order(x, y):
    with pytest.raises(UserError):
        spearman(x, y)


def test_slope_is_scipys():
    rng = np.random.default_rng(10)
    x, y = rng.normal(size=(2, 9))
    expected = stats.linregress(x, y)
    half = stats.t.ppf(0.975, 7) * expected.stderr
    interval = slope(x, y)
    assert interval.mean == pytest.approx(expected.slope)
    assert (interval.low, interval.high) == pytest.approx((expected.slope - half, expected.slope + half))
    assert np.isnan(slope([0, 1], [1, 3]).low)
    with pytest.raises(UserError, match="two different x"):
        slope([2, 2, 2], [1, 2, 3])
    with pytest.raises(UserError, match="groups"):
        slope([1, 2], [1, 2], groups=[0])


@pytest.mark.parametrize(
    ("bounds", "bound", "direction", "verdict"),
    [
        ((0.1, 0.3), 0.0, "above", "holds"),
        ((-0.1, 0.3), 0.0, "above", "not decided"),
        ((-0.3, -0.1), 0.0, "above", "fails"),
        ((0.0, 0.0), 0.0, "above", "fails"),
        ((-0.3, -0.1), 0.0, "below", "holds"),
        ((0.1, 0.3), 0.0, "below", "fails"),
        ((-0.1, 0.3), 0.0, "below", "not decided"),
        ((0.9, 1.1), (0.75, 1.25), "within", "holds"),
        ((0.7, 1.1), (0.75, 1.25), "within", "not decided"),
        ((1.3, 1.5), (0.75, 1.25), "within", "fails"),
        ((np.nan, np.nan), 0.0, "above", "not decided"),
        ((np.nan, np.nan), 0.0, "below", "not decided"),
        ((np.nan, np.nan), (0.0, 1.0), "within", "not decided"),
    ],
)
def test_a_criterion_holds_fails_or_is_not_decided(bounds, bound, direction, verdict):
    assert decide(Interval(float(np.mean(bounds)), *bounds, 5), bound, direction) == verdict


def test_a_bound_must_fit_its_direction():
    interval = Interval(0.0, -1.0, 1.0, 5)
    with pytest.raises(UserError):
        decide(interval, 0.0, "within")
    with pytest.raises(UserError):
        decide(interval, (0.0, 1.0), "above")
    with pytest.raises(UserError, match="did you mean below"):
        decide(interval, 0.0, "bellow")


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("holds", "holds"), "holds"),
        (("holds", "fails"), "fails"),
        (("not decided", "fails"), "fails"),
        (("holds", "not decided"), "not decided"),
    ],
)
def test_a_criterion_of_parts_holds_when_all_of_them_do(verdicts, expected):
    assert all_of(*verdicts) == expected
