"""Linear one-against-rest probes on pooled residuals, and the latents that move them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saebench_recovery.interfaces import Output
from saebench_recovery.recovery.attribution import content_residuals
from saebench_recovery.sites import Site
from saebench_recovery.target.target import Target

PENALTY = 1e-2  # L2, on weights per standard deviation of a dimension: it bounds the logits


@dataclass(frozen=True, eq=False)
class Probes:
    """Probes of K classes at a site of a target, and the mean activations of its latents.

    A probe says "this class" where its logit `pooled @ weight_DK + bias_K` is positive.
    `activation_KM` is a class's mean over texts of a latent's mean over content tokens.
    """

    target: Target
    site: Site
    weight_DK: Tensor
    bias_K: Tensor
    activation_KM: Tensor

    def logits(self, output: Output) -> Tensor:
        """[E, K], float32, differentiable."""
        assert output.pooled_ED is not None
        return output.pooled_ED @ self.weight_DK + self.bias_K

    def effect(self, k: int) -> Tensor:
        """Effect [M] of each latent on probe k, as in SAEBench's TPP.

        relu(mean activation on the class - mean on the rest) * (probe weight . decoder row).
        """
        rest_M = (self.activation_KM.sum(0) - self.activation_KM[k]) / (len(self.bias_K) - 1)
        decoder_MD = self.target.dictionary(self.site).decoder_MD
        return torch.relu(self.activation_KM[k] - rest_M) * (decoder_MD @ self.weight_DK[:, k])

    def accuracy(self, outputs: Sequence[Iterable[Output]]) -> Tensor:
        """Balanced accuracy [K] of each probe, from the outputs on texts of each class in turn."""
        shares = [torch.cat([self.logits(o) > 0 for o in of_class]) for of_class in outputs]
        said_KK = torch.stack([said_EK.double().mean(0) for said_EK in shares])  # class, probe
        right_K = said_KK.diagonal()
        wrong_K = (said_KK.sum(0) - right_K) / (len(right_K) - 1)
        return (right_K + 1 - wrong_K) / 2


def fit_probes(target: Target, site: Site, texts: Sequence[Sequence[tuple[int, ...]]]) -> Probes:
    """Fit one probe per class to the tokens of its texts and of all the others."""
    prompts = [ids for of_class in texts for ids in of_class]
    count_K = torch.tensor([len(of_class) for of_class in texts], device=target.device)
    class_E = torch.arange(len(texts), device=target.device).repeat_interleave(count_K)
    content_E = [len(ids) - (target.bos is not None) for ids in prompts]
    share_E = 1 / torch.tensor(content_E, device=target.device)
    dictionary = target.dictionary(site)
    pooled_ED = torch.zeros(len(prompts), dictionary.d_model, device=target.device)
    activation_KM = torch.zeros(len(texts), dictionary.width, device=target.device)
    for prompt_N, resid_ND in content_residuals(target, site, prompts):
        share_N1 = share_E[prompt_N, None]
        pooled_ED.index_add_(0, prompt_N, resid_ND.float() * share_N1)
        z_NM = dictionary.encode(resid_ND) * share_N1
        activation_KM.index_add_(0, class_E[prompt_N], z_NM)
    weight_DK, bias_K = logistic(pooled_ED.double().cpu(), class_E.cpu(), len(texts))
    return Probes(
        target,
        site,
        weight_DK.float().to(target.device),
        bias_K.float().to(target.device),
        activation_KM / count_K[:, None],
    )


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
