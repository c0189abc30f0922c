"""Training: one loop, which is given a loss: by likelihood, or for the reward."""
