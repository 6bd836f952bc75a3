"""Which latents carry a behaviour: gradients, probes, the refusal direction."""
