"""Other programs' files: Hugging Face folders and GGUF, in and out.

On disk weights are always per layer under Hugging Face's names (or GGUF's); that ours are stacked is never visible.
`tables` says which of theirs is which of ours and `configs` translates their configurations; `huggingface` and
`gguf_model` read and write whole models; `gguf` is that file format alone, with the blocks of its quantised kinds.
"""
