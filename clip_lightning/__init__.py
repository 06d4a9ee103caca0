"""Contrastive image-text pre-training and its scaling studies. Import its rooms; this imports nothing."""

__version__ = "0.1.0"
