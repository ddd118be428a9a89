"""Inference: a dense key-value cache and a plain sampler."""
