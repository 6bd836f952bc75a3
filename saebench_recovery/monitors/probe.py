"""`probe`: a small network tells undisturbed residuals from ones moved as an attack would."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from saebench_recovery.base.precision import exact, finest
from saebench_recovery.monitors.detector import Score, Undisturbed

HIDDEN, STEPS, LEARNING_RATE = 64, 60, 5e-3
SEED = 0  # of the weights and of the random directions


def probe(undisturbed: Undisturbed) -> Score:
    """Logit of a probe with one hidden layer on a token's residual.

    A monitor of latent states in Bailey et al., arXiv 2412.09565. Its positives there are prompts
    that ask for the behaviour; here every prompt does, so they are the same residuals moved by the
    site's own spread: along the behaviour's gradient, and in a random direction. That is what is
    known of recovery before any attack. Either class has half of the weight.

    It is smooth and trained in float64, or whether it rings would differ from one CPU to another:
    with ReLU, residuals that differ by 1e-6 ended in scores a tenth of their spread apart.
    """
    device = undisturbed.resid_ND.device
    resid_ND, moved_ND = exact(undisturbed.resid_ND), exact(_moved(undisturbed))
    mean_D, spread_D = resid_ND.mean(0), resid_ND.std(0).clamp(min=1e-6)
    both_ND = (torch.cat([resid_ND, moved_ND]) - mean_D) / spread_D
    truth_N = torch.cat([torch.zeros(len(resid_ND)), torch.ones(len(moved_ND))]).to(both_ND)
    weight_N = torch.where(truth_N > 0, 0.5 / len(moved_ND), 0.5 / len(resid_ND))
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        network = nn.Sequential(
            nn.Linear(resid_ND.shape[1], HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 1)
        ).to(both_ND)
    solver = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    with torch.enable_grad():
        for _ in range(STEPS):
            solver.zero_grad()
            loss = binary_cross_entropy_with_logits(
                network(both_ND)[:, 0], truth_N, weight_N, reduction="sum"
            )
            loss.backward()  # type: ignore[no-untyped-call]
            solver.step()
    fine = finest(device)
    network.requires_grad_(False).to(device, fine)
    mean_D, spread_D = (part.to(fine).to(device) for part in (mean_D, spread_D))

    def logit(resid: Tensor) -> Tensor:
        read: Tensor = network((resid.to(fine) - mean_D) / spread_D)[..., 0]
        return read.float()

    return logit


def _moved(undisturbed: Undisturbed) -> Tensor:
    resid_ND, pull_ND = undisturbed.resid_ND, undisturbed.pull_ND
    drawn = torch.randn(resid_ND.shape, generator=Generator().manual_seed(SEED)).to(resid_ND)
    steps = [normalize(drawn, dim=1), normalize(pull_ND[pull_ND.any(1)], dim=1)]
    starts = [resid_ND, resid_ND[pull_ND.any(1)]]
    return torch.cat(
        [start + undisturbed.size * step for start, step in zip(starts, steps, strict=True)]
    )
