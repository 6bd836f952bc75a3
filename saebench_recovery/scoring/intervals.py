"""95 % intervals from the totals of clusters: for a rate, a mean and a paired difference.

Every function takes `total_RM`, the sum of the values in each of M clusters, and `size_M`, their
sizes. A leading axis R holds repetitions, so that a simulation of thousands of samples runs the
code that scores a row. `docs/statistics.md` has the coverage of each and how it was chosen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

UPPER = 0.975  # quantile that leaves out half of the 5 % that a 95 % interval may miss
PRIOR_CLUSTERS = 1.5  # how many clusters' worth of evidence the prior correlation is
PRIOR_CORRELATION = 0.5

Array = NDArray[np.float64]
Interval = tuple[Array, Array]


def effective_clusters(size_M: Array) -> float:
    """Number of equal clusters that would say as much: (sum n)^2 / sum n^2 (Kish 1965)."""
    return float(size_M.sum() ** 2 / (size_M @ size_M))


def design_effect(total_RM: Array, size_M: Array) -> Array:
    """How many clustered examples say as much as one independent one; at least 1.

    The variance of the proportion p = sum x / sum n as a ratio estimator,
    m / (m - 1) * sum (x_i - n_i p)^2 / n^2, over that of independent examples, p (1 - p) / n (Rao
    and Scott, "A simple method for the analysis of clustered binary data", Biometrics 48, 1992),
    gives the correlation r inside clusters, as the ratio is 1 + (size - 1) r with size =
    sum n^2 / sum n. Few clusters, or rates near 0 and 1, hardly determine it; where all outcomes
    are alike nothing does. So r is averaged with a prior of 0.5 that weighs as much as 1.5
    clusters, against 4 p (1 - p) times the effective number of clusters: a cluster in which
    nothing happens says little about how alike its members are.
    """
    n, m = size_M.sum(), len(size_M)
    typical = float(size_M @ size_M / n)
    rate_R = total_RM.sum(-1) / n
    if typical <= 1:  # less where an example that was tried several times counts in part
        return np.ones_like(rate_R)
    if m == 1:
        return np.full_like(rate_R, typical)
    variance_R = m / (m - 1) * _squares(total_RM - size_M * rate_R[..., None]) / n**2
    independent_R = rate_R * (1 - rate_R) / n
    ratio_R = np.divide(
        variance_R, independent_R, out=np.ones_like(rate_R), where=independent_R > 0
    )
    correlation_R = np.clip((ratio_R - 1) / (typical - 1), 0, 1)
    weight_R = 4 * rate_R * (1 - rate_R) * effective_clusters(size_M)
    shrunk_R = (PRIOR_CLUSTERS * PRIOR_CORRELATION + weight_R * correlation_R) / (
        PRIOR_CLUSTERS + weight_R
    )
    effect_R: Array = 1 + (typical - 1) * shrunk_R
    return effect_R


def rate_interval(total_RM: Array, size_M: Array) -> Interval:
    """Wilson score interval at the effective sample size, with a quantile of Student's t.

    Wilson (1927) at n / `design_effect`, with the t quantile at one degree of freedom less than
    the effective number of clusters, plus 1.5 for the prior.

    A single cluster says nothing about how alike its members are. What holds whatever they are is
    Markov's inequality, as the share y of successes in a cluster has the rate as its mean:
    y / 40 to 1 - (1 - y) / 40, for one example the exact (Clopper-Pearson) interval.
    """
    n = size_M.sum()
    rate_R = total_RM.sum(-1) / n
    if len(size_M) == 1:
        return (1 - UPPER) * rate_R, 1 - (1 - UPPER) * (1 - rate_R)
    quantile = stdtrit(effective_clusters(size_M) - 1 + PRIOR_CLUSTERS, UPPER)
    z2_R = quantile**2 * design_effect(total_RM, size_M) / n
    centre_R = (rate_R + z2_R / 2) / (1 + z2_R)
    half_R = np.sqrt(z2_R * rate_R * (1 - rate_R) + z2_R**2 / 4) / (1 + z2_R)
    return _around(rate_R, centre_R, half_R, 0.0)


def mean_interval(total_RM: Array, size_M: Array) -> Interval:
    """Student's t interval over two or more clusters, extended towards the longer tail.

    The variance is the jackknife's over clusters (CR3 of Bell and McCaffrey, "Bias reduction in
    standard errors for linear regression with multi-stage samples", Survey Methodology 28, 2002),
    with the effective number of clusters less one as degrees of freedom, at least 1. A t interval
    misses the mean of skewed values on the side of the long tail; that bound is moved to where
    Hall's transformation puts it ("On the removal of skewness by transformation", Journal of the
    Royal Statistical Society B 54, 1992, his cubic), if that is further out.
    """
    mean_R, error_R, skew_R, freedom = _mean_parts(total_RM, size_M)
    quantile = stdtrit(freedom, UPPER)
    below_R = np.maximum(quantile, _untransformed(quantile, skew_R))
    above_R = np.maximum(quantile, -_untransformed(-quantile, skew_R))
    return mean_R - below_R * error_R, mean_R + above_R * error_R


def mean_p_value(total_RM: Array, size_M: Array) -> Array:
    """Two-sided p-value of a mean of zero: at most 0.05 only where `mean_interval` leaves out 0."""
    mean_R, error_R, skew_R, freedom = _mean_parts(total_RM, size_M)
    with np.errstate(divide="ignore"):
        t_R = np.divide(mean_R, error_R, out=np.zeros_like(mean_R), where=mean_R != 0)
    t_R = np.clip(t_R, -1e9, 1e9)
    transformed_R = t_R + skew_R * t_R**2 / 3 + skew_R**2 * t_R**3 / 27 + skew_R / 6
    return _two_sided(np.minimum(np.abs(t_R), np.sign(t_R) * transformed_R), freedom)


def difference_interval(total_RM: Array, size_M: Array) -> Interval:
    """Difference of two paired rates, from totals of differences that are -1, 0 or 1.

    Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data", Journal of Educational and Behavioral Statistics 37 (2012), add one pair
    in favour of either side. Here each is a third of a cluster of typical size (at least one
    pair), the variance is that of a ratio estimator over all clusters, and the two count as
    degrees of freedom of the t quantile. So runs that never differ still get a width.
    """
    centre_R, error_R, freedom = _difference_parts(total_RM, size_M)
    half_R = stdtrit(freedom, UPPER) * error_R
    return _around(total_RM.sum(-1) / size_M.sum(), centre_R, half_R, -1.0)


def difference_p_value(total_RM: Array, size_M: Array) -> Array:
    """Two-sided p-value of equal rates: at most 0.05 only where `difference_interval` agrees."""
    centre_R, error_R, freedom = _difference_parts(total_RM, size_M)
    return _two_sided(np.abs(centre_R) / error_R, freedom)


def _mean_parts(total_RM: Array, size_M: Array) -> tuple[Array, Array, Array, float]:
    """Mean, standard error, skewness / sqrt(effective clusters) and degrees of freedom."""
    n, m = size_M.sum(), len(size_M)
    mean_R = total_RM.sum(-1) / n
    clusters = effective_clusters(size_M)
    left_out_RM = (total_RM - size_M * mean_R[..., None]) / (1 - size_M / n)
    squares_R = _squares(left_out_RM)
    third_R = (left_out_RM**3).mean(-1)
    spread_R = (squares_R / m) ** 1.5
    skewness_R = np.divide(third_R, spread_R, out=np.zeros_like(mean_R), where=spread_R > 0)
    error_R = np.sqrt((m - 1) / m * squares_R) / n
    return mean_R, error_R, skewness_R / np.sqrt(clusters), max(1.0, clusters - 1)


def _difference_parts(total_RM: Array, size_M: Array) -> tuple[Array, Array, float]:
    """Adjusted difference, its standard error and degrees of freedom."""
    n, m = size_M.sum(), len(size_M)
    added = max(1.0, float(size_M @ size_M / n) / 3)
    pairs = n + 2 * added
    centre_R = total_RM.sum(-1) / pairs
    squares_R = _squares(total_RM - size_M * centre_R[..., None])
    squares_R = squares_R + added**2 * ((1 - centre_R) ** 2 + (1 + centre_R) ** 2)
    error_R = np.sqrt((m + 2) / (m + 1) * squares_R) / pairs
    return centre_R, error_R, effective_clusters(size_M) + 1


def _two_sided(t_R: Array, freedom: float) -> Array:
    p_R: Array = np.minimum(1.0, 2 * stdtr(freedom, -t_R))
    return p_R


def _untransformed(value: float, skew_R: Array) -> Array:
    """The t at which t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 has a value; `a` is skewness / sqrt m."""
    a_R = np.where(np.abs(skew_R) < 1e-6, 1e-6, skew_R)
    solved: Array = 3 / a_R * (np.cbrt(1 + a_R * (value - a_R / 6)) - 1)
    return solved


def _around(estimate_R: Array, centre_R: Array, half_R: Array, smallest: float) -> Interval:
    """The interval inside [smallest, 1]; rounding must not move it off an estimate at the end."""
    low_R = np.maximum(smallest, np.minimum(estimate_R, centre_R - half_R))
    return low_R, np.minimum(1.0, np.maximum(estimate_R, centre_R + half_R))


def _squares(x_RM: Array) -> Array:
    total: Array = np.einsum("...m,...m->...", x_RM, x_RM)
    return total
