"""A run, or several, as one HTML page that needs no network: `python -m clip_lightning.report runs/DIR [B C]`."""
