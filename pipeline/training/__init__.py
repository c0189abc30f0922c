"""Training: one loop that is given a loss (likelihood or reward), its batches, augmentation and optimiser."""
