"""From raw text to batches: sources, prepared token files, the loader and packing.

curate/       which documents are worth training on: extraction, filters, deduplication
sources.py    where text comes from: packages (sources.toml), Hugging Face, the user's own files
readers.py    documents out of files, and sentences for malformed ones
split.py      which text is for training and which for validation
prepare.py    text -> split -> tokenizer -> memory-mapped token files, once
prepared.py   a prepared folder: open, verify, describe
tokenfile.py  the memory map and its document starts
mix.py        which source each window comes from, by weights that change with the tokens seen
mixture.py    batches out of several sources, and what each has given
loader.py     batches as a function of (seed, step); validation windows; prefetching
packing.py    separate documents packed into rows (fine-tuning)
"""
