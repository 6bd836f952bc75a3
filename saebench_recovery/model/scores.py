"""Candidates' scores from the final states of a pass: only the logits that are read."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench_recovery.model.batch import Batch
from saebench_recovery.model.language_model import LanguageModel
from saebench_recovery.model.vocabulary_sample import Samples, VocabularySample

STATES = 16  # whose logits over the whole vocabulary are held at once
SHARED = 4  # times as many different answers as an example has: one product serves all


def candidate_scores(target: LanguageModel, batch: Batch, hidden_RQD: Tensor) -> Tensor:
    """Candidates' scores [E, C], float32."""
    if batch.forced_RQ is None:
        scores_EC = _logits(target, batch, hidden_RQD)
    else:
        total_R = batch.settled_R + forced(target, batch, hidden_RQD)
        scores_EC = (total_R / batch.length_R).view(len(batch.readout_E), -1)
        if any(batch.one_token):  # it is scored as it is alone
            one_E = torch.tensor(batch.one_token, device=scores_EC.device)
            logits_EC = _logits(target, batch, hidden_RQD)
            scores_EC = torch.where(one_E[:, None], logits_EC, scores_EC)
    return scores_EC.masked_fill(batch.candidate_EC < 0, -torch.inf)


def _logits(target: LanguageModel, batch: Batch, hidden_RQD: Tensor) -> Tensor:
    """Logits [E, C] of the candidates' first tokens at the readout."""
    first_E = torch.arange(len(batch.readout_E), device=hidden_RQD.device) * batch.rows_per_example
    readout_ED = hidden_RQD[first_E, batch.readout_E]
    ids_K, place_EC = batch.answers
    if len(ids_K) <= SHARED * place_EC.shape[1]:  # the same answers for most examples
        return target.logits_among(readout_ED, ids_K).gather(1, place_EC)
    return target.logits_of(readout_ED, batch.candidate_EC.clamp(min=0))


def forced(target: LanguageModel, batch: Batch, hidden_RQD: Tensor) -> Tensor:
    """Sum [R] of the log-probabilities of the tokens that each row should predict.

    About that, where samples of the vocabulary stand for it.
    """
    forced_RQ = batch.forced_RQ
    assert forced_RQ is not None
    row, column = (forced_RQ >= 0).nonzero(as_tuple=True)
    once, again = torch.unique(batch.state_RQ[row, column], return_inverse=True)
    states_ND = hidden_RQD.flatten(0, 1)[once]
    if batch.samples is None:
        total = target.log_totals(states_ND)
    else:
        example_N = torch.empty_like(once).scatter(0, again, row // batch.rows_per_example)
        total = _sampled_totals(target, batch.samples, states_ND, example_N)
    wanted = target.logits_of(hidden_RQD[row, column], forced_RQ[row, column][:, None])[:, 0]
    each = wanted - total[again]
    return each.new_zeros(hidden_RQD.shape[0]).index_add(0, row, each)


def _sampled_totals(
    target: LanguageModel, samples: Samples, states_ND: Tensor, example_N: Tensor
) -> Tensor:
    """About what `LanguageModel.log_totals` says [N], by the sample of each state's example."""
    place_N = samples.place_E[example_N]
    total_N = states_ND.new_empty(len(states_ND), dtype=torch.float32)
    for place in torch.unique(place_N).tolist():
        own = place_N == place
        total_N[own] = target.log_totals(states_ND[own], samples.samples[place])
    return total_N


@torch.no_grad()
def sampled(target: LanguageModel, batch: Batch, hidden_RQD: Tensor) -> Samples:
    """A part of the vocabulary for each example: what is likely where its answers are read."""
    assert batch.forced_RQ is not None
    E = len(batch.readout_E)
    read_EXD = hidden_RQD.reshape(E, -1, hidden_RQD.shape[-1])
    forced_EX = batch.forced_RQ.reshape(E, -1) >= 0
    found = []
    for read_XD, forced_X in zip(read_EXD, forced_EX, strict=True):
        # A state at least: of an answer of one token nothing is summed.
        states_KD = read_XD[forced_X] if forced_X.any() else read_XD[:1]
        parts = torch.split(states_KD, STATES)
        each = [target.logits(some).log_softmax(-1).amax(0) for some in parts]
        found.append(VocabularySample.of(torch.stack(each).amax(0)))
    return Samples(tuple(found), torch.arange(E, device=hidden_RQD.device))
