"""Models with their SAEs: presets, the hub, packaged weights, chat, the embedded organism."""
