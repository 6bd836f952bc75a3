"""Every finding by its name, with its level and remedy. Nothing here imports torch.

An `error` leaves nothing meaningful to score; `invalid` is scored, shown and never ranked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.plugin import PluginError
from saebench_recovery.schema import Finding
from saebench_recovery.schema.finding import Level


class Known(NamedTuple):
    level: Level
    remedy: str


_PURE = "make intervene, and alarm, a function of the residual alone"
_RETURN = "return a residual of the same shape, dtype and device as the one given"
_SPLIT = "split by source item, so that selection, evaluation and retain share no content"

CATALOGUE: dict[str, Known] = {
    # What a defense returns.
    "raises": Known("error", "mend the method; --debug shows the traceback"),
    "returns-none": Known("error", _RETURN),
    "wrong-type": Known("error", _RETURN),
    "wrong-shape": Known("error", _RETURN),
    "wrong-dtype": Known("error", _RETURN),
    "wrong-device": Known("error", _RETURN),
    "not-finite": Known("error", "keep NaN and infinity out of what intervene returns"),
    "constant-residual": Known("invalid", "let what the prompt says pass the defense"),
    # A defense is a function.
    "random-defense": Known("invalid", f"{_PURE}: draw what is random once, in fit"),
    "stateful-defense": Known("invalid", f"{_PURE}: change no attribute when it is called"),
    "writes-to-input": Known("invalid", "work on a copy: resid = resid.clone(), no `+=` on it"),
    "depends-on-gradient-mode": Known(
        "invalid", f"{_PURE}: the same with and without gradients, for leaves and others"
    ),
    "depends-on-batch": Known("invalid", f"{_PURE}: each row for itself, whatever rows are beside"),
    "depends-on-window": Known(
        "invalid", f"{_PURE}: each token for itself, whatever tokens are before and behind"
    ),
    "depends-on-length": Known(
        "invalid", f"{_PURE}: a token alone, as in generation, like the same one in its prompt"
    ),
    # Gradients.
    "gradient-dishonest": Known(
        "invalid", "let autograd differentiate what is computed: no detach, hook or own backward"
    ),
    "no-gradient": Known("invalid", "use differentiable operations, without detach or rounding"),
    # Edits.
    "changes-nothing": Known("note", "choose latents that are active on the task's prompts"),
    "edits-undeclared-latents": Known("invalid", "declare in `latents` what intervene edits"),
    "writes-elsewhere": Known(
        "note", "drift of the declared latents says little of what such a defense does"
    ),
    "declares-unedited-latents": Known(
        "note", "they do not hold an attack back; declare only latents that intervene edits"
    ),
    "constraint-rank": Known("caution", "defend fewer latents: the constraint leaves little room"),
    # Tasks.
    "ids-not-unique": Known("error", "give every evaluation example an id of its own"),
    "splits-overlap": Known("invalid", _SPLIT),
    "duplicate-examples": Known("caution", "give copies of one prompt one `cluster`, or drop them"),
    "no-retain-examples": Known("invalid", "give the task retain examples: behaviours to leave"),
    "objective-disagrees": Known(
        "invalid", "let the objective be positive exactly where the behaviour is shown"
    ),
    "fidelity-blind": Known("invalid", "let fidelity be 1 only for what equals the clean output"),
    "shown-and-stopped": Known("invalid", "let stopped be false wherever behaviour is true"),
    "wrong-target-shown": Known(
        "invalid", "let `wrong` be an answer that neither the clean nor the defended model gives"
    ),
    "unequal-answers": Known(
        "invalid", "let the same scores mean the same, whichever of the answers is asked for"
    ),
    "two-detectors": Known(
        "invalid", "judge each output by the field that the task reads, always the same one"
    ),
    # What they must leave alone, and what they must name.
    "target-changed": Known(
        "invalid",
        "write to no weight and no SAE, and leave no hook: a defense is `intervene` alone",
    ),
    "reads-other-files": Known(
        "caution",
        "name it in `data_files`, or put what it holds into the plugin's file or its settings",
    ),
    # Attacks.
    "unknown-space": Known("error", "set `space` to a kind of perturbation that there is"),
    "positions-outside": Known("error", "name positions that a pass over the example reaches"),
    "no-positions": Known("error", "name at least one position, each once"),
    "behind-defense": Known("error", "perturb a defended site or an earlier one, or use post"),
    "wrong-perturbation": Known("error", "return a perturbation of the problem's own space"),
    "refused": Known("error", "see the message"),
}


def finding(name: str, sentence: str, level: Level | None = None) -> Finding:
    """A finding with its usual remedy and, unless another is given, its usual level."""
    known = CATALOGUE[name]
    return Finding(name=name, level=level or known.level, sentence=sentence, remedy=known.remedy)


def refusal(error: UserError) -> Finding:
    """The finding that bad input is."""
    name = error.fault if isinstance(error, PluginError) else "refused"
    return finding(name, str(error))


def refuse(findings: Iterable[Finding]) -> None:
    """Stop at the first error.

    Raises:
        UserError: there is one.
    """
    for found in findings:
        if found.level == "error":
            raise UserError(f"{found.sentence} ({found.name}); {found.remedy}")


def blocked(findings: Sequence[Finding]) -> bool:
    """Whether something is wrong that keeps a row from being ranked."""
    return any(found.level in ("error", "invalid") for found in findings)
