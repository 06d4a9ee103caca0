"""A trained model as files of other libraries: `python -m clip_lightning.export RUN --to LIBRARY --out DIR`.

One module for each library writes its files; `verify` then opens them by that library's public call and compares
features, tokens and pixels with ours.
"""
