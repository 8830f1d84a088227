from __future__ import annotations

import math
import random
import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr.gossip.phi import (
    BURST,
    INTERVAL_S_MAX,
    PHI_MAX,
    PRIOR_SAMPLES,
    PRIOR_SIGMA,
    SAMPLES_MAX,
    SIGMA_MIN,
    SILENCE_MAX,
    PhiEstimate,
    _log10_tail,
)


def heard_with(silences_s: list[float], interval_s: float = 1.0) -> tuple[PhiEstimate, float]:
    """Return an estimate that was heard once and then after each silence, and the time of the last packet."""
    estimate = PhiEstimate(interval_s)
    now_s = 100.0
    estimate.heard(now_s)
    for silence_s in silences_s:
        now_s += silence_s
        estimate.heard(now_s)
    return estimate, now_s


def prior(interval_s: float = 1.0) -> list[float]:
    return [interval_s * (1 - PRIOR_SIGMA), interval_s * (1 + PRIOR_SIGMA)] * (PRIOR_SAMPLES // 2)


def log10_tail(z: float) -> float:
    """Compute the tail of the normal distribution by other means than erfc."""
    normal = statistics.NormalDist()
    if z < 4.0:
        return math.log10(normal.cdf(-z))
    fraction = 0.0  # Laplace's continued fraction of the Mills ratio: the difference 1 - cdf has no digits left here
    for term in range(200, 0, -1):
        fraction = term / (z + fraction)
    return (-z * z / 2 - math.log(z + fraction) - math.log(2 * math.pi) / 2) / math.log(10)


def expected_phi(silences_s: list[float], silence_s: float, interval_s: float = 1.0) -> float:
    """Compute phi from its definition."""
    mean_s = statistics.fmean(silences_s)
    sigma_s = max(statistics.pstdev(silences_s), SIGMA_MIN * max(mean_s, interval_s))
    return min(PHI_MAX, -log10_tail((silence_s - mean_s) / sigma_s))


def test_phi_is_zero_before_the_first_packet_and_at_each_packet() -> None:
    estimate = PhiEstimate(1.0)
    assert estimate.last_s == -math.inf
    assert estimate.phi(1e9) == 0.0
    estimate.heard(5.0)
    assert estimate.last_s == 5.0
    assert estimate.phi(5.0) == 0.0


def test_phi_rises_with_silence_up_to_its_cap() -> None:
    estimate, now_s = heard_with([1.0, 0.9, 1.1] * 10)
    phis = [estimate.phi(now_s + tenths / 10) for tenths in range(1, 120)]
    assert all(before < after for before, after in pairwise(phis))
    assert estimate.phi(now_s + 1e6) == PHI_MAX


def test_phi_falls_after_a_packet() -> None:
    estimate, now_s = heard_with([1.0] * 20)
    assert estimate.phi(now_s + 3.0) > 3.0
    estimate.heard(now_s + 3.0)
    assert estimate.phi(now_s + 3.1) < 0.3


def test_phi_is_sensible_from_the_first_packet_because_of_the_expected_interval() -> None:
    estimate, now_s = heard_with([], interval_s=2.0)
    assert estimate.phi(now_s + 1.0) < 0.1
    assert estimate.phi(now_s + 2.0) == pytest.approx(math.log10(2), abs=1e-6)
    assert estimate.phi(now_s + 5.0) == pytest.approx(expected_phi(prior(2.0), 5.0, 2.0), abs=1e-6)
    assert estimate.phi(now_s + 10.0) > 8.0


def test_phi_is_what_the_normal_distribution_says() -> None:
    rng = random.Random(5)
    silences_s = [round(rng.uniform(0.3, 1.9), 6) for _ in range(200)]
    estimate, now_s = heard_with(silences_s)
    samples_s = prior() + silences_s
    mean_s = statistics.fmean(samples_s)
    assert estimate.phi(now_s + mean_s) == pytest.approx(math.log10(2), abs=1e-6)
    for silence_s in (0.05, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0):
        assert estimate.phi(now_s + silence_s) == pytest.approx(expected_phi(samples_s, silence_s), abs=1e-6)


def test_the_tail_is_that_of_the_normal_distribution_near_and_far() -> None:
    for tenths in range(-80, 1000):
        z = tenths / 10
        assert _log10_tail(z) == pytest.approx(log10_tail(z), abs=1e-6)


def test_the_tail_has_no_seam_where_its_forms_meet() -> None:
    for seam in (0.0, 25.0):
        assert _log10_tail(math.nextafter(seam, -1.0)) == pytest.approx(_log10_tail(seam), rel=1e-9)


def test_the_tail_is_finite_as_far_as_numbers_go() -> None:
    assert -1e301 < _log10_tail(1e150) < -1e299


def test_a_punctual_peer_may_still_be_a_little_late() -> None:
    estimate, now_s = heard_with([1.0] * (2 * SAMPLES_MAX))
    assert estimate.phi(now_s + 1.0 + SIGMA_MIN) == pytest.approx(-log10_tail(1.0), abs=1e-6)


def test_a_burst_counts_as_one_packet() -> None:
    alone, alone_s = heard_with([1.0] * 50)
    burst = PhiEstimate(1.0)
    now_s = 100.0
    burst.heard(now_s)
    for _ in range(50):
        for _ in range(5):
            now_s += BURST / 10
            burst.heard(now_s)
        now_s += 1.0
        burst.heard(now_s)
    for silence_s in (0.5, 1.0, 1.5):
        assert burst.phi(now_s + silence_s) == pytest.approx(alone.phi(alone_s + silence_s), abs=1e-6)


def test_silence_is_counted_from_the_last_packet_of_a_burst() -> None:
    estimate, now_s = heard_with([1.0] * 50)
    fresh = estimate.phi(now_s + 1.5)
    estimate.heard(now_s + BURST / 2)
    assert estimate.last_s == now_s + BURST / 2
    assert estimate.phi(now_s + BURST / 2 + 1.5) == pytest.approx(fresh, abs=1e-6)


def test_a_constant_stream_does_not_make_the_usual_rhythm_look_overdue() -> None:
    estimate, now_s = heard_with([1.0] * 50)
    for _ in range(10_000):
        now_s += 0.002
        estimate.heard(now_s)
    assert estimate.phi(now_s + 1.0) == pytest.approx(math.log10(2), abs=1e-3)


def test_an_outage_counts_as_a_bounded_silence() -> None:
    after_outage, _ = heard_with([1.0] * 50 + [100_000.0])
    bounded, _ = heard_with([1.0] * 50 + [float(SILENCE_MAX)])
    assert after_outage._distribution_us() == bounded._distribution_us()


def test_a_rhythm_much_slower_than_expected_is_learned() -> None:
    rng = random.Random(3)
    estimate, now_s = heard_with([rng.uniform(25.0, 75.0) for _ in range(100)], interval_s=1.0)
    assert estimate.phi(now_s + 50.0) < 1.0
    assert estimate.phi(now_s + 200.0) > 8.0


def test_a_rhythm_much_faster_than_expected_is_learned() -> None:
    estimate, now_s = heard_with([0.2] * SAMPLES_MAX, interval_s=1.0)
    assert estimate.phi(now_s + 0.2) == pytest.approx(math.log10(2), abs=1e-3)
    assert estimate.phi(now_s + 0.2 + 6 * SIGMA_MIN) > 8.0


def test_another_expectation_begins_anew_but_for_the_round_trip_and_the_last_packet() -> None:
    estimate, now_s = heard_with([1.0] * 50)
    estimate.answered(0.02)
    estimate.expect(20.0)
    assert estimate.phi(now_s + 25.0) == pytest.approx(expected_phi(prior(20.0), 25.0, 20.0), abs=1e-6)
    assert (estimate.last_s, estimate.rtt_s) == (now_s, 0.02)
    estimate.heard(now_s + 20.0 * BURST - 0.1)
    assert len(estimate._samples_us) == PRIOR_SAMPLES, "a burst, by what is expected now"


def test_only_the_newest_samples_count() -> None:
    rng = random.Random(7)
    old_s = [round(rng.uniform(0.2, 9.0), 6) for _ in range(SAMPLES_MAX)]
    new_s = [round(rng.uniform(0.8, 1.3), 6) for _ in range(SAMPLES_MAX)]
    estimate, now_s = heard_with(old_s + new_s)
    assert len(estimate._samples_us) == SAMPLES_MAX
    assert estimate.phi(now_s + 1.5) == pytest.approx(expected_phi(new_s, 1.5), abs=1e-6)


def test_the_sums_do_not_drift() -> None:
    rng = random.Random(11)
    estimate = PhiEstimate(1.0)
    now_s = 1e7
    for round_number in range(50_000):
        # Long silences first: their squares are what a running sum of floats never quite gets rid of.
        now_s += rng.uniform(10.0, 16.0) if round_number < 25_000 else 1.0
        estimate.heard(now_s)
    samples = list(estimate._samples_us)
    assert estimate._sum_us == sum(samples)
    assert estimate._sum_square_us == sum(sample * sample for sample in samples)


def test_a_clock_that_seems_to_go_back_changes_nothing() -> None:
    estimate, now_s = heard_with([1.0] * 5)
    estimate.heard(now_s - 3.0)
    assert estimate.last_s == now_s
    assert estimate.phi(now_s - 3.0) == 0.0


def test_the_first_round_trip_is_taken_as_it_is() -> None:
    estimate = PhiEstimate(1.0)
    assert estimate.rtt_s == 0.0
    assert estimate.timeout_s(0.05, 0.5) == 0.5, "nothing is known yet"
    estimate.answered(0.04)
    assert estimate.rtt_s == 0.04
    assert estimate.timeout_s(0.05, 0.5) == pytest.approx(0.12)


def test_later_round_trips_are_smoothed() -> None:
    estimate = PhiEstimate(1.0)
    estimate.answered(0.040)
    estimate.answered(0.080)
    assert estimate.rtt_s == pytest.approx(0.045)
    assert estimate.timeout_s(0.0, 9.0) == pytest.approx(0.045 + 4 * (0.75 * 0.020 + 0.25 * 0.040))


def test_the_timeout_stays_within_its_bounds() -> None:
    estimate = PhiEstimate(1.0)
    for _ in range(100):
        estimate.answered(0.0001)
    assert estimate.timeout_s(0.05, 0.5) == 0.05
    for _ in range(100):
        estimate.answered(3.0)
    assert estimate.timeout_s(0.05, 0.5) == 0.5


def test_an_impossible_round_trip_is_ignored() -> None:
    estimate = PhiEstimate(1.0)
    estimate.answered(0.04)
    for rtt_s in (-1.0, math.inf, math.nan):
        estimate.answered(rtt_s)
    assert estimate.rtt_s == 0.04


FINITE = st.floats(allow_nan=False, allow_infinity=False)
STEPS = st.lists(st.tuples(st.sampled_from(["heard", "answered", "phi"]), FINITE | st.floats(0.0, 100.0)), max_size=60)


@given(interval_s=st.floats(min_value=1e-9, max_value=INTERVAL_S_MAX), steps=STEPS, asked_s=FINITE)
def test_every_result_is_finite_whatever_came_in(
    interval_s: float, steps: list[tuple[str, float]], asked_s: float
) -> None:
    estimate = PhiEstimate(interval_s)
    for method, number in steps:
        getattr(estimate, method)(number)
    assert 0.0 <= estimate.phi(asked_s) <= PHI_MAX
    assert 0.0 <= estimate.timeout_s(0.01, 1.0) <= 1.0
    assert math.isfinite(estimate.rtt_s)
    assert len(estimate._samples_us) <= SAMPLES_MAX


@given(
    silences_s=st.lists(st.integers(100_000, 16_000_000).map(lambda us: us / 1e6), max_size=50),
    silence_s=st.floats(0.001, 8.0),
)
def test_any_rhythm_gives_the_phi_of_its_definition(silences_s: list[float], silence_s: float) -> None:
    estimate = PhiEstimate(1.0)
    now_s = 0.0
    estimate.heard(now_s)
    for gap_s in silences_s:
        now_s += gap_s
        estimate.heard(now_s)
    samples_s = [sample_us / 1e6 for sample_us in estimate._samples_us]
    assert len(samples_s) >= PRIOR_SAMPLES
    assert estimate.phi(now_s + silence_s) == pytest.approx(expected_phi(samples_s, silence_s), abs=1e-6)
