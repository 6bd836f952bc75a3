"""A defense: multiplies every defended latent that is on, and keeps the SAE's error.

saebench check --plugin my_defense.py --defense my-defense --task ioi
saebench run --plugin my_defense.py --defense my-defense --task ioi --limit 64
"""

from pydantic import Field
from torch import Tensor

from saebench_recovery.interfaces import Defense, Site
from saebench_recovery.registry import register_defense


@register_defense("my-defense")
class MyDefense(Defense):
    """One line that `saebench list defenses` shows."""

    class Config(Defense.Config):
        # Set on the command line with -D factor=0; an unknown key or a bad value is refused.
        factor: float = Field(
            default=-1.0, ge=-100, le=100, description="factor on each latent that is on"
        )

    config: Config

    # `fit` is inherited: it selects latents by the task's own statistic, on the selection split.

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        """The residual stream [batch, tokens, width] as the defense leaves it.

        It must be a function of its input alone, with an honest gradient, and must not write
        to it: `saebench check` tries.
        """
        latents = self.latents[site]
        z_BTS = latents.read(resid_BTD)  # activations of the defended latents, zero where off
        return latents.write(resid_BTD, (self.config.factor - 1) * z_BTS)
