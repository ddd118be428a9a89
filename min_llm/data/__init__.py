"""From raw text to batches: sources, prepared token files, the loader and packing.

sources.py    where text comes from: packages, Hugging Face, the user's own files
prepare.py    text -> split -> tokenizer -> memory-mapped token files, once
tokenfile.py  the memory map and its document starts
loader.py     batches as a function of (seed, step); validation windows; prefetching
packing.py    separate documents packed into rows (fine-tuning)
"""
