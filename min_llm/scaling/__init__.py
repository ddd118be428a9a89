"""Scaling laws (Llama 3 section 3.2.1): what a larger budget will buy, learned from small runs."""
