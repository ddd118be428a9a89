"""Curation: from piles of text to text worth training on. "The Llama 3 Herd of Models", section 3.1.1.

document.py      documents, and the reasons to drop them
steps.py         the steps by name; which of them share a pass
  extract.py     html.py, markdown.py: pages into text                      domains.py    block lists
  pii.py         personal data                                              repetition.py repeated n-grams
  urls.py        one version of a page                                      dirty.py      words of a list
  exact.py       equal texts                                                kl.py         outlying words
  minhash.py     nearly equal texts                                         decontaminate.py  evaluation texts
  lines.py       lines that many documents share
  classify.py    a label by a classifier: quality, code and maths, language, topic
linear.py        a linear one; ngrams.py what it sees of a text
train_linear.py  how it is fitted, labelled.py to what
encoder.py       a small transformer that has learnt to score as a large one does; train_encoder.py how
model_file.py    the file of either
words.py         words as hashes, for whole batches: what most steps work on
keyed.py         deduplication over all shards in bounded memory
read.py          documents out of files, write.py into them, settings.py what is read and written
walk.py          one pass over one shard, and the barrier after a pass
pipeline.py      all passes over all shards, resumably; execute.py in processes or on Ray
tally.py         what each step did; report.py the page that shows it
"""
