"""Data: from a position in the run to a batch of uint8 images and token ids, with no hidden state on the way.

`order` gives the sample at a position, a `layout` reads it, `decode` and `augment` make its pixels, and
`datamodule` hands out batches. `python -m clip_lightning.data.index` and `python -m clip_lightning.data.check` are the
tools for looking at data before a run.
"""
