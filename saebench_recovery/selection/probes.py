"""Linear one-against-rest probes on pooled residuals, and the latents that move them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saebench_recovery.base.precision import exact
from saebench_recovery.base.sites import Site
from saebench_recovery.selection.latent_scores import content_residuals
from saebench_recovery.targets.target import Target

PENALTY = 1e-2  # L2, on weights per standard deviation of a dimension: it bounds the logits


@dataclass(frozen=True, eq=False)
class Probes:
    """Probes of K classes at a site of a target, and the mean activations of its latents.

    A probe says "this class" where its logit `pooled @ weight_DK + bias_K` is positive.
    `accuracy_K` is their balanced accuracy on held-out texts of the clean model, and
    `activation_KM` a class's mean over texts of a latent's mean over content tokens.
    """

    target: Target
    site: Site
    weight_DK: Tensor
    bias_K: Tensor
    accuracy_K: Tensor
    activation_KM: Tensor

    def logits(self, pooled_ED: Tensor) -> Tensor:
        """[E, K], float32, differentiable."""
        return pooled_ED @ self.weight_DK + self.bias_K

    def effect(self, k: int) -> Tensor:
        """Effect [M] of each latent on probe k, as in SAEBench's TPP.

        relu(mean activation on the class - mean on the rest) * (probe weight . decoder row).
        """
        rest_M = (self.activation_KM.sum(0) - self.activation_KM[k]) / (len(self.bias_K) - 1)
        pieces = self.target.dictionary(self.site).pieces()
        along_M = torch.cat([latents.decoder_SD @ self.weight_DK[:, k] for latents in pieces])
        return torch.relu(self.activation_KM[k] - rest_M) * along_M


def balanced_accuracy(logits: Sequence[Tensor]) -> Tensor:
    """Balanced accuracy [K] of each probe, from the logits [E, K] on each class's texts in turn."""
    said_KK = torch.stack([exact(logits_EK > 0).mean(0) for logits_EK in logits])
    right_K = said_KK.diagonal()  # rows are classes, columns probes
    wrong_K = (said_KK.sum(0) - right_K) / (len(right_K) - 1)
    return (right_K + 1 - wrong_K) / 2


Prompts = Sequence[tuple[int, ...]]


def fit_probes(
    target: Target, site: Site, texts: Sequence[Prompts], held_out: Sequence[Prompts]
) -> Probes:
    """Fit one probe per class to the tokens of its texts and of all the others."""
    pooled, activation = zip(*(_means(target, site, of_class) for of_class in texts), strict=True)
    class_E = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(t) for t in texts]))
    weight_DK, bias_K = logistic(torch.cat(pooled).cpu().double(), class_E, len(texts))
    weight_DK, bias_K = weight_DK.float().to(target.device), bias_K.float().to(target.device)
    unseen = [_means(target, site, of_class)[0] @ weight_DK + bias_K for of_class in held_out]
    accuracy_K = balanced_accuracy(unseen)
    return Probes(target, site, weight_DK, bias_K, accuracy_K, torch.stack(activation))


def _means(target: Target, site: Site, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Mean residual [E, D] of each text, and activations [M] averaged over tokens, then texts."""
    dictionary = target.dictionary(site)
    content_E = [sum(token not in target.sink_tokens for token in ids[1:]) for ids in prompts]
    share_E1 = 1 / torch.tensor(content_E, device=target.device).clamp(min=1)[:, None]
    pooled_ED = torch.zeros(len(prompts), dictionary.d_model, device=target.device)
    activation_M = torch.zeros(dictionary.width, device=target.device)
    for prompt_N, resid_ND in content_residuals(target, site, prompts):
        pooled_ED.index_add_(0, prompt_N, resid_ND.float() * share_E1[prompt_N])
        for latents in dictionary.pieces():
            activation_M[latents.chosen] += share_E1[prompt_N, 0] @ latents.read(resid_ND)
    return pooled_ED, activation_M / len(prompts)


def logistic(x_ED: Tensor, class_E: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weights [D, K] and biases [K] of one-against-rest logistic regressions, in float64.

    The class and the rest have the same total weight, which is what balanced negatives are in
    expectation, without drawing any. The penalty makes the problem strongly convex.
    """
    mean_D, spread_D = x_ED.mean(0), x_ED.std(0).clamp(min=1e-12)
    unit_ED = (x_ED - mean_D) / spread_D
    truth_EK = (class_E[:, None] == torch.arange(classes)).double()
    weight_EK = truth_EK / truth_EK.sum(0) / 2 + (1 - truth_EK) / (1 - truth_EK).sum(0) / 2
    w_DK = torch.zeros(x_ED.shape[1], classes, dtype=torch.float64, requires_grad=True)
    b_K = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [w_DK, b_K], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        fit = torch.nn.functional.binary_cross_entropy_with_logits(
            unit_ED @ w_DK + b_K, truth_EK, weight_EK, reduction="sum"
        )
        value = fit + PENALTY / 2 * w_DK.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    weight_DK = w_DK.detach() / spread_D[:, None]
    return weight_DK, b_K.detach() - mean_D @ weight_DK
