"""One paper each: short compositions of the core that never own the training loop."""
