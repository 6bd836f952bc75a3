"""Candidates' scores from the final states of a pass: only the logits that are read."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench_recovery.model.batch import Batch
from saebench_recovery.model.language_model import LanguageModel
from saebench_recovery.model.vocabulary_sample import VocabularySample

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

    About that, where a sample of the vocabulary stands for it.
    """
    forced_RQ = batch.forced_RQ
    assert forced_RQ is not None
    row, column = (forced_RQ >= 0).nonzero(as_tuple=True)
    once, again = torch.unique(batch.state_RQ[row, column], return_inverse=True)
    total = target.log_totals(hidden_RQD.flatten(0, 1)[once], batch.sample)
    wanted = target.logits_of(hidden_RQD[row, column], forced_RQ[row, column][:, None])[:, 0]
    each = wanted - total[again]
    return each.new_zeros(hidden_RQD.shape[0]).index_add(0, row, each)


@torch.no_grad()
def sampled(target: LanguageModel, batch: Batch, hidden_RQD: Tensor) -> VocabularySample:
    """A part of the vocabulary, with what is likely where answers are read from these states."""
    assert batch.forced_RQ is not None
    states_ND = hidden_RQD[batch.forced_RQ >= 0]
    parts = states_ND.split(STATES)  # type: ignore[no-untyped-call]
    each = [target.logits(some).log_softmax(-1).amax(0) for some in parts]
    return VocabularySample.of(torch.stack(each).amax(0))
