"""What must be said of each case: the finding's or flag's name and its level.

`EXPECTED` is said by `saebench check`, `FLAGGED` by a row; what has no effect at all is in
`tests.cases.searched`.
"""

from __future__ import annotations

from saebench_recovery.base.catalogue import Kind

DEFENSES = {
    "h-neg-grad": ("gradient-dishonest", "invalid"),
    "h-detach": ("no-gradient", "invalid"),
    "h-round": ("no-gradient", "invalid"),
    "h-retain-aware": ("gradient-dishonest", "invalid"),
    "h-claims-all": ("declares-unedited-latents", "note"),
    "h-claims-other": ("edits-undeclared-latents", "invalid"),
    "h-noise": ("random-defense", "invalid"),
    "h-first-n": ("stateful-defense", "invalid"),
    "bad-state": ("stateful-defense", "invalid"),
    "bad-inplace2": ("writes-to-input", "invalid"),
    "h-grad-mode": ("depends-on-gradient-mode", "invalid"),
    "h-len1": ("depends-on-length", "invalid"),
    "h-window": ("depends-on-window", "invalid"),
    "h-batch": ("depends-on-batch", "invalid"),
    "h-many-rows": ("depends-on-batch", "invalid"),
    "h-traces": ("declares-unedited-latents", "note"),
    "h-global-count": ("stateful-defense", "invalid"),
    "bad-nan": ("not-finite", "error"),
    "bad-shape": ("wrong-shape", "error"),
    "bad-shape-bcast": ("wrong-shape", "error"),
    "bad-double": ("wrong-dtype", "error"),
    "bad-none": ("returns-none", "error"),
    "bad-raises": ("raises", "error"),
    "bad-fit": ("raises", "error"),
    "bad-zero": ("constant-residual", "error"),
    "bad-nothing": ("changes-nothing", "note"),
    "h-own-tensor": ("wrong-type", "error"),
    "h-no-latents": ("refused", "error"),
    "h-other-directions": ("refused", "error"),
    "h-nearly-constant": ("constant-residual", "invalid"),
    "h-reads-by-itself": ("refused", "error"),
    "h-another-detector": ("refused", "error"),
}
TASKS = {
    "t-two-detectors": ("two-detectors", "invalid"),
    "t-opposite": ("objective-disagrees", "invalid"),
    "t-near-dup": ("splits-overlap", "invalid"),
    "t-shared-cluster": ("splits-overlap", "invalid"),
    "t-copies": ("duplicate-examples", "invalid"),
    "t-wrong-shown": ("wrong-target-shown", "invalid"),
    "t-no-retain": ("no-retain-examples", "invalid"),
    "t-shown-and-stopped": ("shown-and-stopped", "invalid"),
    "t-reads-ids": ("two-detectors", "invalid"),
    "t-same-ids": ("ids-not-unique", "error"),
    "t-raises": ("raises", "error"),
    "t-harder-wrong": ("unequal-answers", "invalid"),
    "t-easier-right": ("unequal-answers", "invalid"),
    "t-misleading": ("objective-disagrees", "invalid"),
    "t-all-faithful": ("fidelity-blind", "invalid"),
    "t-retain-alone": ("no-retain-examples", "invalid"),
}
ATTACKS = {
    "x-far-positions": ("positions-outside", "error"),
    "x-after-defense": ("behind-defense", "error"),
    "x-no-space": ("unknown-space", "error"),
    "cheat-nan": ("wrong-perturbation", "error"),
    "cheat-rows": ("wrong-perturbation", "error"),
    "cheat-dtype": ("raises", "error"),
    "cheat-tensor": ("wrong-perturbation", "error"),
    "cheat-none": ("wrong-perturbation", "error"),
    "cheat-position": ("wrong-perturbation", "error"),
    "cheat-raises": ("raises", "error"),
    "cheat-own-tensor": ("wrong-perturbation", "error"),
    "cheat-own-mapping": ("wrong-perturbation", "error"),
}
EXPECTED: dict[Kind, dict[str, tuple[str, str]]] = {
    "defense": DEFENSES,
    "task": TASKS,
    "attack": ATTACKS,
}
FLAGGED = {
    "cheat-mutate": ("search-misled", "invalid"),
    "x-grad-proj": ("constraint-broken", "caution"),
    "x-kill-defense": ("search-misled", "invalid"),
    "x-patch-limits": ("judge-replaced", "invalid"),
}
