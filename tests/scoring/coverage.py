"""How often intervals cover and tests err, by simulation: `python -m tests.scoring.coverage`.

The full run makes the tables of `docs/statistics.md`; `test_coverage.py`
runs a part of it. Samples of one design are drawn and scored as one array.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

from saebench_recovery.scoring.intervals import (
    Interval,
    difference_interval,
    mean_interval,
    rate_interval,
)
from saebench_recovery.scoring.paired import paired_test

Array = NDArray[np.float64]
IntervalOf = Callable[[Array, Array], Interval]
Draw = Callable[["np.random.Generator", "Design", float, int], Array]
Sizes = Literal["1", "6", "24", "4 to 24", "1 to 40"]

SEED = 20
SAMPLES = 4000
MEANS = 2000  # samples a design for means and differences
TESTS = 1000  # samples a design for tests, which are scored one by one
CLUSTERS = (5, 10, 20, 50)
SIZES: tuple[Sizes, ...] = ("1", "6", "24", "4 to 24", "1 to 40")
RATES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
CORRELATIONS = (0.0, 0.1, 0.3, 0.5)
SHARED = 0.5  # share of clusters that are as hard for one of two paired runs as for the other


@dataclass(frozen=True)
class Design:
    """Clusters as they are sampled: how many, how large, how alike inside."""

    clusters: int
    sizes: Sizes
    correlation: float

    @property
    def size_M(self) -> Array:
        m = self.clusters
        if self.sizes == "4 to 24":
            return np.rint(np.linspace(4, 24, m))
        if self.sizes == "1 to 40":  # most clusters small, few large
            return np.maximum(1, np.rint(40 * np.linspace(0.02, 1, m) ** 3))
        return np.full(m, float(self.sizes))


@dataclass(frozen=True)
class Result:
    """Coverage and mean width of an interval, or how often a test rejects what is true."""

    design: Design
    of: str  # the rate, or the distribution of values
    share: float
    width: float = 0.0


def designs(clusters: int, sizes: Sequence[Sizes], correlations: Sequence[float]) -> list[Design]:
    """All that differ: examples that stand alone have no correlation."""
    return [
        Design(clusters, size, correlation)
        for size, correlation in itertools.product(sizes, correlations)
        if size != "1" or correlation == 0
    ]


# --- samples ----------------------------------------------------------------------------------


def beta_binomial(rng: np.random.Generator, design: Design, rate: float, samples: int) -> Array:
    """Successes in each cluster, whose own rates are drawn from a beta distribution."""
    own_RM = _own_rates(rng, design, (rate, rate), samples)[0]
    return rng.binomial(design.size_M.astype(int), own_RM).astype(float)


def all_or_none(rng: np.random.Generator, design: Design, rate: float, samples: int) -> Array:
    """Successes where a share of clusters agrees altogether, and the others not at all."""
    shape = (samples, design.clusters)
    agree_RM = rng.random(shape) < design.correlation
    alone_RM = rng.binomial(design.size_M.astype(int), rate, shape)
    return np.where(agree_RM, design.size_M * (rng.random(shape) < rate), alone_RM)


def paired_outcomes(
    rng: np.random.Generator, design: Design, rates: tuple[float, float], samples: int
) -> Array:
    """Differences of successes of two runs; half of the clusters are as hard for both."""
    first_RM, second_RM = _own_rates(rng, design, rates, samples)
    _, other_RM = _own_rates(rng, design, rates, samples)
    second_RM = np.where(rng.random(first_RM.shape) < SHARED, second_RM, other_RM)
    size_M = design.size_M.astype(int)
    return (rng.binomial(size_M, second_RM) - rng.binomial(size_M, first_RM)).astype(float)


def alike_runs(rng: np.random.Generator, design: Design, rate: float, samples: int) -> Array:
    """Differences of two runs that differ by chance only."""
    return paired_outcomes(rng, design, (rate, rate), samples)


def unlike_runs(rng: np.random.Generator, design: Design, rate: float, samples: int) -> Array:
    """Differences of two runs with the same rate, of which only one is correlated in clusters."""
    alone_RM = rng.binomial(design.size_M.astype(int), rate, (samples, design.clusters))
    return beta_binomial(rng, design, rate, samples) - alone_RM


def _own_rates(
    rng: np.random.Generator, design: Design, rates: tuple[float, float], samples: int
) -> tuple[Array, Array]:
    """Beta-distributed rates of clusters for two runs, to which the same clusters are hard.

    The three parts of a Dirichlet distribution are what both, only the easier and neither wins.
    """
    shape = (samples, design.clusters)
    if design.correlation == 0:
        return np.full(shape, rates[0]), np.full(shape, rates[1])
    least, most = sorted(rates)
    parts = np.array([least, most - least, 1 - most]) * (1 / design.correlation - 1)
    both, one, neither = (rng.standard_gamma(part, shape) for part in parts)
    total = both + one + neither
    low, high = both / total, (both + one) / total
    return (low, high) if rates[0] == least else (high, low)


VALUES: dict[str, tuple[Callable[[Array], Array], float]] = {
    "normal": (lambda z: z, 0.0),
    "log-normal, 0.5": (lambda z: np.exp(0.5 * z), float(np.exp(0.125))),
    "exponential": (lambda z: -np.log(ndtr(-z)), 1.0),
    "log-normal, 1": (np.exp, float(np.exp(0.5))),
}


def values(rng: np.random.Generator, design: Design, of: str, samples: int) -> Array:
    """Totals of values with the named distribution, correlated inside clusters as normal scores."""
    size_M = design.size_M.astype(int)
    shared_RM = np.sqrt(design.correlation) * rng.standard_normal((samples, design.clusters))
    own_RN = np.sqrt(1 - design.correlation) * rng.standard_normal((samples, size_M.sum()))
    value_RN = VALUES[of][0](np.repeat(shared_RM, size_M, axis=1) + own_RN)
    return np.add.reduceat(value_RN, np.concatenate([[0], np.cumsum(size_M)[:-1]]), axis=1)


# --- what is measured -------------------------------------------------------------------------


def rate_coverage(
    designs: Iterable[Design],
    rates: Sequence[float],
    samples: int,
    draw: Draw = beta_binomial,
    interval: IntervalOf = rate_interval,
) -> Iterator[Result]:
    for design, rate in itertools.product(designs, rates):
        total_RM = draw(_rng(design, rate), design, rate, samples)
        yield _covered(design, str(rate), rate, interval(total_RM, design.size_M))


def mean_coverage(
    designs: Iterable[Design],
    kinds: Iterable[str],
    samples: int,
    interval: IntervalOf = mean_interval,
) -> Iterator[Result]:
    for design, kind in itertools.product(designs, kinds):
        total_RM = values(_rng(design, len(kind)), design, kind, samples)
        yield _covered(design, kind, VALUES[kind][1], interval(total_RM, design.size_M))


def difference_coverage(
    designs: Iterable[Design], rates: Sequence[tuple[float, float]], samples: int
) -> Iterator[Result]:
    for design, (first, second) in itertools.product(designs, rates):
        total_RM = paired_outcomes(_rng(design, first), design, (first, second), samples)
        bounds = difference_interval(total_RM, design.size_M)
        yield _covered(design, f"{second} - {first}", second - first, bounds)


def false_positives(
    designs: Iterable[Design], rates: Sequence[float], samples: int, draw: Draw
) -> Iterator[Result]:
    """How often runs with equal rates differ at 0.05."""
    for design, rate in itertools.product(designs, rates):
        total_RM = draw(_rng(design, rate), design, rate, samples)
        p_values = [paired_test(total_M, design.size_M, binary=True)[0] for total_M in total_RM]
        yield Result(design, str(rate), float(np.mean(np.array(p_values) <= 0.05)))


def _rng(design: Design, of: float) -> np.random.Generator:
    """A design has the same samples whatever else is run."""
    key = (design.clusters, SIZES.index(design.sizes), design.correlation * 100, of * 100)
    return np.random.default_rng([SEED, *(round(part) for part in key)])


def _covered(design: Design, of: str, truth: float, bounds: Interval) -> Result:
    low_R, high_R = bounds
    covers = (low_R <= truth + 1e-12) & (truth - 1e-12 <= high_R)
    return Result(design, of, float(covers.mean()), float((high_R - low_R).mean()))


# --- other recipes, for their widths ----------------------------------------------------------


def _wilson(rate_R: Array, effective_R: Array, quantile: float) -> Interval:
    z2_R = quantile**2 / effective_R
    centre_R = (rate_R + z2_R / 2) / (1 + z2_R)
    half_R = np.sqrt(z2_R * rate_R * (1 - rate_R) + z2_R**2 / 4) / (1 + z2_R)
    return centre_R - half_R, centre_R + half_R


def _ratio(total_RM: Array, size_M: Array, alike: float) -> Array:
    """Estimated design effect, at least 1; `alike` where all outcomes are."""
    n, m = size_M.sum(), len(size_M)
    rate_R = total_RM.sum(-1) / n
    squares_R = ((total_RM - size_M * rate_R[:, None]) ** 2).sum(-1)
    independent_R = rate_R * (1 - rate_R) * n
    ratio_R = np.full_like(rate_R, alike)
    np.divide(m / (m - 1) * squares_R, independent_R, out=ratio_R, where=independent_R > 0)
    at_least_1_R: Array = np.maximum(1, ratio_R)
    return at_least_1_R


def wilson_z(total_RM: Array, size_M: Array) -> Interval:
    """Wilson at the estimated design effect and 1.96."""
    n, m = size_M.sum(), len(size_M)
    effective_R = n / _ratio(total_RM, size_M, n / m)
    return _wilson(total_RM.sum(-1) / n, effective_R, float(ndtri(0.975)))


def wilson_t(total_RM: Array, size_M: Array) -> Interval:
    """... with the t quantile of m - 1."""
    n, m = size_M.sum(), len(size_M)
    effective_R = n / _ratio(total_RM, size_M, n / m)
    return _wilson(total_RM.sum(-1) / n, effective_R, float(stdtrit(m - 1, 0.975)))


def wilson_shrunk(total_RM: Array, size_M: Array) -> Interval:
    """... and the design effect shrunk to that of a correlation of 0.5, weighing as 8 clusters."""
    n, m = size_M.sum(), len(size_M)
    prior = 1 + (size_M @ size_M / n - 1) * 0.5
    shrunk_R = (8 * prior + m * _ratio(total_RM, size_M, prior)) / (8 + m)
    return _wilson(total_RM.sum(-1) / n, n / shrunk_R, float(stdtrit(m - 1, 0.975)))


def percentile_bootstrap(total_RM: Array, size_M: Array) -> Interval:
    """Means of resampled clusters, 1,000 times."""
    m = len(size_M)
    times_BM = np.random.default_rng(SEED).multinomial(m, np.full(m, 1 / m), size=1000)
    means_RB = total_RM @ times_BM.T / (times_BM @ size_M)
    low_R, high_R = np.quantile(means_RB, [0.025, 0.975], axis=1)
    return low_R, high_R


def t_interval(total_RM: Array, size_M: Array) -> Interval:
    """The ratio estimator with the t quantile of m - 1."""
    n, m = size_M.sum(), len(size_M)
    mean_R = total_RM.sum(-1) / n
    squares_R = ((total_RM - size_M * mean_R[:, None]) ** 2).sum(-1)
    half_R = stdtrit(m - 1, 0.975) * np.sqrt(m / (m - 1) * squares_R) / n
    return mean_R - half_R, mean_R + half_R


# --- tables -----------------------------------------------------------------------------------


def _cell(every: list[Result]) -> str:
    least, most = min(r.share for r in every), max(r.share for r in every)
    return f"{least:.3f} to {most:.3f} ({np.mean([r.width for r in every]):.3f})"


def _table(title: str, rows: dict[str, dict[int, list[Result]]]) -> None:
    print(f"\n| {title} | " + " | ".join(f"{m} clusters" for m in CLUSTERS) + " |")
    print("|---" * (len(CLUSTERS) + 1) + "|")
    for name, of in rows.items():
        print(f"| {name} | " + " | ".join(_cell(of[m]) for m in CLUSTERS) + " |", flush=True)


def _lowest(results: dict[int, list[Result]], count: int = 4) -> None:
    print()
    for r in sorted(itertools.chain(*results.values()), key=lambda r: r.share)[:count]:
        d = r.design
        print(f"- {r.share:.3f}: {d.clusters} of {d.sizes}, correlation {d.correlation}, {r.of}")


def print_rates() -> None:
    full = {m: designs(m, SIZES, CORRELATIONS) for m in CLUSTERS}
    measured = {m: designs(m, ("4 to 24",), (0.1, 0.5)) for m in CLUSTERS}
    recipes: dict[str, IntervalOf] = {
        "ours": rate_interval,
        "Wilson, estimated design effect, 1.96": wilson_z,
        "... t with m - 1": wilson_t,
        "... and shrunk, prior of 8 clusters": wilson_shrunk,
    }
    sets: list[tuple[str, dict[int, list[Design]], Draw]] = [
        ("beta-binomial", full, beta_binomial),
        ("beta-binomial, 4 to 24, correlation 0.1 and 0.5", measured, beta_binomial),
        ("all-or-none", full, all_or_none),
    ]
    for title, among, draw in sets:
        results = {
            name: {m: list(rate_coverage(among[m], RATES, SAMPLES, draw, of)) for m in CLUSTERS}
            for name, of in recipes.items()
        }
        _table(f"rates, {title}", results)
        _lowest(results["ours"])


def print_means() -> None:
    among = {m: designs(m, SIZES, (0.0, 0.5)) for m in CLUSTERS}
    recipes: dict[str, IntervalOf] = {
        "ours": mean_interval,
        "t with m - 1": t_interval,
        "percentile bootstrap": percentile_bootstrap,
    }
    for kind in VALUES:
        results = {
            name: {m: list(mean_coverage(among[m], [kind], MEANS, of)) for m in CLUSTERS}
            for name, of in recipes.items()
        }
        _table(f"means, {kind}", results)
        _lowest(results["ours"])


def print_pairs() -> None:
    full = {m: designs(m, SIZES, CORRELATIONS) for m in CLUSTERS}
    gaps = [(a, b) for a in RATES[:4] for b in (0.05, 0.25, 0.5, 0.9)]
    found = {m: list(difference_coverage(full[m], gaps, MEANS)) for m in CLUSTERS}
    _table("differences of paired rates", {"ours": found})
    _lowest(found)
    among = {m: designs(m, SIZES, (0.0, 0.5)) for m in CLUSTERS}
    draws: dict[str, Draw] = {"alike": alike_runs, "one correlated, one not": unlike_runs}
    errors = {
        name: {m: list(false_positives(among[m], RATES[:4], TESTS, draw)) for m in CLUSTERS}
        for name, draw in draws.items()
    }
    _table("type-I error at 0.05", errors)


def main() -> None:
    print_rates()
    print_means()
    print_pairs()


if __name__ == "__main__":
    main()
