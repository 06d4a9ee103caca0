"""The training step: gradients, optimizer, schedule, guards, and evaluation while it goes."""
