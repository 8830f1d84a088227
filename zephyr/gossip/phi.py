"""How overdue a peer is: one number, taken from how often it was heard until now, and how fast it answers.

The phi accrual failure detector (Hayashibara et al. 2004, sections 3 and 5): the silences between the packets
of one peer are taken as normally distributed, and after a silence of t, phi is -log10 of the probability that a
silence lasts longer than t. Phi 1 is wrong once in 10 times, phi 3 once in 1,000 times. Beside it stands the
round trip as in RFC 6298, section 2, because the same code asks for both: when, and for how long, to probe.

Decides nothing: phi starts probes, orders helpers and is shown to people, but it never declares death. Counts
only what is handed to it: direct, authenticated packets. It knows no clock: all times are
seconds in which this node itself ran, so that its own pause (`zephyr.gossip.swim`) is no silence of anybody.

Invariants:
- A silence is sampled exactly as phi measures it: from the last packet, whatever its kind, to the next one.
- The sums are whole microseconds, so that adding and removing samples for months leaves no drift behind.
- At most `SAMPLES_MAX` samples are kept. Every result is finite, whatever finite numbers came in.
"""

from __future__ import annotations

import math
from array import array

SAMPLES_MAX = 1000
"""As in the paper's experiments. 8 KB a peer, once it is full."""
PRIOR_SAMPLES = 8
"""What the expected interval weighs against what is heard, until the window has moved past it. Even: one half lies a
`PRIOR_SIGMA` above it, the other below."""
PRIOR_SIGMA = 0.5
"""Of the expected interval: probes go round in shuffled order, so that silences vary by nearly their mean."""
SIGMA_MIN = 0.1
"""Of the mean, but at least of the expected interval: who was punctual for long may still be late by this."""
BURST = 0.1
"""Of the expected interval: packets closer than this are one sign of life. A packet, what it triggers and what rides
beside it say nothing of the rhythm, and would make the mean tiny."""
SILENCE_MAX = 16
"""Means, but at least expected intervals. A longer silence is an outage, and counts as this long: else it would widen
sigma for as long as it stays in the window. Where the expectation was far too short, the mean grows past it."""
INTERVAL_S_MAX = 3600.0
"""Nobody probes so rarely. Bounds the mean, too, as far as silences are measured by it."""
PHI_MAX = 1000.0
"""Where it ends. No more can be learned from a peer being more overdue, and JSON knows no infinity."""

_FAR = 25.0
"""Sigmas from which the tail's asymptotic series is exact to 1e-9; erfc ends at 37, where it becomes zero."""
_LN_10 = math.log(10.0)
_LN_SQRT_2_PI = math.log(math.sqrt(2.0 * math.pi))
_SQRT_2 = math.sqrt(2.0)


class PhiEstimate:
    """What one peer's packets say of when the next one is due. A new life of the peer gets a new estimate."""

    __slots__ = (
        "_burst_s",
        "_interval_us",
        "_oldest",
        "_rtt_variation_s",
        "_samples_us",
        "_silence_max_s",
        "_sum_square_us",
        "_sum_us",
        "last_s",
        "rtt_s",
    )

    def __init__(self, interval_s: float) -> None:
        """`interval_s`: what is expected to lie between two packets, more than 0 and at most `INTERVAL_S_MAX`."""
        self.expect(interval_s)
        self.last_s = -math.inf
        """When the peer was last heard; minus infinity before."""
        self.rtt_s = 0.0
        """The smoothed round trip; 0.0 before the first answer."""
        self._rtt_variation_s = -1.0  # no answer yet

    def expect(self, interval_s: float) -> None:
        """Change what is expected, as when the cluster has grown: the rhythm so far says nothing of the one to come."""
        assert 0.0 < interval_s <= INTERVAL_S_MAX
        self._interval_us = interval_s * 1e6
        self._burst_s = BURST * interval_s
        self._silence_max_s = SILENCE_MAX * interval_s
        early_us, late_us = (round(interval_s * 1e6 * (1.0 + side * PRIOR_SIGMA)) for side in (-1.0, 1.0))
        self._samples_us = array("Q", (early_us, late_us) * (PRIOR_SAMPLES // 2))
        self._oldest = 0
        self._sum_us = sum(self._samples_us)
        self._sum_square_us = sum(sample_us * sample_us for sample_us in self._samples_us)

    def heard(self, now_s: float) -> None:
        """Note a packet that came from the peer itself. Called once a packet, hence its plain form."""
        silence_s = now_s - self.last_s
        if silence_s < self._burst_s:
            if silence_s > 0.0:
                self.last_s = now_s
            return
        if self.last_s == -math.inf:
            self.last_s = now_s
            return
        self.last_s = now_s
        samples_us = self._samples_us
        if silence_s > self._silence_max_s:
            mean_s = self._sum_us / len(samples_us) / 1e6
            silence_s = min(silence_s, max(self._silence_max_s, SILENCE_MAX * min(mean_s, INTERVAL_S_MAX)))
        silence_us = int(silence_s * 1e6 + 0.5)
        if len(samples_us) < SAMPLES_MAX:
            samples_us.append(silence_us)
            self._sum_us += silence_us
            self._sum_square_us += silence_us * silence_us
            return
        oldest = self._oldest
        gone_us = samples_us[oldest]
        samples_us[oldest] = silence_us
        self._oldest = oldest + 1 if oldest + 1 < SAMPLES_MAX else 0
        self._sum_us += silence_us - gone_us
        self._sum_square_us += silence_us * silence_us - gone_us * gone_us

    def phi(self, now_s: float) -> float:
        """Return how overdue the next packet is, 0 to `PHI_MAX`; 0.0 of a peer that was never heard."""
        silence_s = now_s - self.last_s
        if self.last_s == -math.inf or not silence_s > 0.0:
            return 0.0
        mean_us, sigma_us = self._distribution_us()
        return min(PHI_MAX, 0.0 - _log10_tail((silence_s * 1e6 - mean_us) / sigma_us))  # 0.0 -: never minus zero

    def answered(self, rtt_s: float) -> None:
        """Note how long a probe took to be answered (RFC 6298, 2.2 and 2.3)."""
        if not 0.0 <= rtt_s < math.inf:
            return
        if self._rtt_variation_s < 0.0:
            self.rtt_s = rtt_s
            self._rtt_variation_s = rtt_s / 2
            return
        self._rtt_variation_s += (abs(self.rtt_s - rtt_s) - self._rtt_variation_s) / 4
        self.rtt_s += (rtt_s - self.rtt_s) / 8

    def timeout_s(self, low_s: float, high_s: float) -> float:
        """Return how long an answer may take: the round trip and four times its variation, or the nearest bound.

        `high_s` before the first answer.
        """
        assert low_s <= high_s
        if self._rtt_variation_s < 0.0:
            return high_s
        return max(low_s, min(high_s, self.rtt_s + 4.0 * self._rtt_variation_s))

    def _distribution_us(self) -> tuple[float, float]:
        """Return mean and sigma of the silences."""
        count = len(self._samples_us)
        total_us = self._sum_us
        # In whole numbers the difference of the two large terms is exact, and never negative.
        variance = (count * self._sum_square_us - total_us * total_us) / (count * count)
        mean_us = total_us / count
        return mean_us, max(SIGMA_MIN * mean_us, SIGMA_MIN * self._interval_us, math.sqrt(variance))


def _log10_tail(z: float) -> float:
    """Return log10 of the probability that a standard normal value exceeds `z`; minus infinity only for infinity."""
    if z < 0.0:
        return math.log1p(-0.5 * math.erfc(-z / _SQRT_2)) / _LN_10
    if z < _FAR:
        return math.log10(0.5 * math.erfc(z / _SQRT_2))
    square = z * z
    series = 1.0 - (1.0 - (3.0 - 15.0 / square) / square) / square
    return (math.log(series) - square / 2.0 - math.log(z) - _LN_SQRT_2_PI) / _LN_10
