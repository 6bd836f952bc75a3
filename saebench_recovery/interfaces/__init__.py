"""All that a plugin implements and needs: `Defense`, `Attack`, `Task`, what passes between them.

Shape letters used throughout the project: B batch, E examples, R sequence rows of a batch,
C candidate answers, T tokens, Q tail columns, P perturbed positions, L inserted tokens, D residual
width, S defended latents, M dictionary width, V vocabulary, N items of a flat list (the rows of a
problem or prompts or tokens), K items of a short list (classes or directions or choices, or the
tokens of a packed row), X tokens of all rows of an example, F entries of a flattened perturbation,
I directions of a basis.
"""

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.plugin import Plugin, PluginConfig
from saebench_recovery.base.sites import Site, SiteName
from saebench_recovery.base.splits import fraction_of, split_of
from saebench_recovery.interfaces.attack import Attack
from saebench_recovery.interfaces.defense import Defense
from saebench_recovery.interfaces.task import Split, Task
from saebench_recovery.model.examples import Example, Output, Run
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.perturbations.answer_beginning import Beginning
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import total_norm
from saebench_recovery.perturbations.suffix_embeddings import SoftSuffix
from saebench_recovery.perturbations.suffix_tokens import TokenSuffix
from saebench_recovery.sae.latents import Dictionary, Latents
from saebench_recovery.selection.latent_scores import activation_gradient, content_residuals
from saebench_recovery.targets.target import Target

__all__ = [
    "Attack",
    "Beginning",
    "Defense",
    "Dictionary",
    "Example",
    "Latents",
    "Output",
    "Perturbation",
    "Plugin",
    "PluginConfig",
    "Problem",
    "ResidualDelta",
    "Run",
    "Site",
    "SiteName",
    "SoftSuffix",
    "Split",
    "Target",
    "Task",
    "TokenSuffix",
    "UserError",
    "activation_gradient",
    "content_residuals",
    "fraction_of",
    "split_of",
    "total_norm",
]
