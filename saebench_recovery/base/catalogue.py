"""What is built in: name -> ("module:Class", one line), so that listing it imports no torch."""

from __future__ import annotations

from typing import Literal

Kind = Literal["defense", "attack", "task"]

BUILT_IN: dict[Kind, dict[str, tuple[str, str]]] = {
    "defense": {
        "clamp": (
            "saebench_recovery.defenses.clamp:Clamp",
            "sets active defended latents to a value or multiplies them",
        ),
        "ablation": (
            "saebench_recovery.defenses.ablation:Ablation",
            "sets defended latents to zero",
        ),
        "steering": (
            "saebench_recovery.defenses.steering:Steering",
            "adds a direction that points away from the behaviour",
        ),
        "reconstruction": (
            "saebench_recovery.defenses.reconstruction:Reconstruction",
            "clamps, and lets nothing pass but what the SAE reconstructs",
        ),
        "subspace": (
            "saebench_recovery.defenses.subspace:Subspace",
            "clamps, and pins the defended encoder directions to what the clamp asks for",
        ),
        "multilayer": (
            "saebench_recovery.defenses.multilayer:Multilayer",
            "clamps at several sites",
        ),
        "trajectory": (
            "saebench_recovery.defenses.trajectory:Trajectory",
            "clamps, and holds down at later sites what the clamp lowered there",
        ),
        "conditional": (
            "saebench_recovery.defenses.conditional:Conditional",
            "clamps only tokens at which the behaviour's latents are loud",
        ),
        "paired-shift": (
            "saebench_recovery.defenses.paired_shift:PairedShift",
            "moves latents by what separates paired prompts, on average",
        ),
        "residual-monitor": (
            "saebench_recovery.defenses.monitored:ResidualMonitor",
            "clamps, and rings where the SAE's error is unusual",
        ),
        "mahalanobis-monitor": (
            "saebench_recovery.defenses.monitored:MahalanobisMonitor",
            "clamps, and rings where the residual is unusual",
        ),
        "probe-monitor": (
            "saebench_recovery.defenses.monitored:ProbeMonitor",
            "clamps, and rings where a probe reads a step towards the behaviour",
        ),
    },
    "attack": {
        "orthogonal": (
            "saebench_recovery.attacks.orthogonal:Orthogonal",
            "residual delta kept in the null space of the defended encoder directions",
        ),
        "straight-through": (
            "saebench_recovery.attacks.straight_through:StraightThrough",
            "the same, with gradients that pass the defense unchanged",
        ),
        "jacobian": (
            "saebench_recovery.attacks.jacobian:Jacobian",
            "residual delta that keeps the defended latents in place at every layer",
        ),
        "lagrangian": (
            "saebench_recovery.attacks.lagrangian:Lagrangian",
            "residual delta with a rising price on the drift that the row is scored by",
        ),
        "minimal": (
            "saebench_recovery.attacks.minimal:Minimal",
            "residual delta of the smallest norm that recovers, in the null space",
        ),
        "query": (
            "saebench_recovery.attacks.query:Query",
            "residual delta in the null space, found by random search without gradients",
        ),
        "unconstrained": (
            "saebench_recovery.attacks.unconstrained:Unconstrained",
            "residual delta held back by the budget alone",
        ),
        "random-direction": (
            "saebench_recovery.attacks.random_direction:RandomDirection",
            "one random direction at the full budget, the floor for every attack",
        ),
        "gcg": (
            "saebench_recovery.attacks.gcg:GreedyCoordinateGradient",
            "tokens behind the prompt, found by greedy coordinate gradient",
        ),
        "soft-suffix": (
            "saebench_recovery.attacks.soft_suffix:SoftSuffixAscent",
            "free embeddings behind the prompt, displaced within the budget",
        ),
        "prefill": (
            "saebench_recovery.attacks.prefill:Prefill",
            "beginnings of the answer, written for the model, which then goes on by itself",
        ),
        "relearn": (
            "saebench_recovery.attacks.relearn:Relearn",
            "low-rank change of the weights, trained on other examples (extra: finetune)",
        ),
        "quantise": (
            "saebench_recovery.attacks.quantise:Quantise",
            "weights rounded to 8 or 4 bits, without any search",
        ),
        "auto-v1": (
            "saebench_recovery.attacks.auto:AutoV1",
            "the first standard suite, for rows that are compared with older ones",
        ),
        "auto-v2": (
            "saebench_recovery.attacks.auto:AutoV2",
            "the standard suite without parameters: worst case over several attacks",
        ),
    },
    "task": {
        "ioi": (
            "saebench_recovery.tasks.ioi:IndirectObject",
            "indirect objects: who was given the thing?",
        ),
        "tpp": (
            "saebench_recovery.tasks.tpp:TargetedProbe",
            "targeted probe perturbation: which class does a linear probe see?",
        ),
        "unlearning": (
            "saebench_recovery.tasks.unlearning:Unlearning",
            "multiple choice about facts that the defense should take away",
        ),
        "refusal": (
            "saebench_recovery.tasks.refusal:Refusal",
            "requests that the model answers and the defense makes it refuse",
        ),
    },
}
