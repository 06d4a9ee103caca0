"""Evaluators: a constructor and a `run(model, tokenizer, device)` that returns records; no Trainer needed.

Every rank works on its share of the images, prompts or pairs, and every rank ends with the same exact records.
"""
