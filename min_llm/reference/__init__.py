"""The models in NumPy, forward and backward, written to be read. Start here.

Nothing in the library imports this room; the tests do, and hold everything fast against it. It needs NumPy
alone, keeps to float64 unless told otherwise, and derives every gradient by hand. In reading order:

    layers.py      norms, activations, softmax, cross-entropy, RoPE: each a forward and a backward
    attention.py   who may look at whom (the mask), attention and its gradient, attention in blocks
    llama.py       Llama 3: the whole model, its loss and its gradients
    gpt2.py        GPT-2, the same way; the differences are the lesson
    mixtral.py     Mixtral: Llama with a mixture of experts
    outside.py     logits, loss and gradients, from any of these models
    decode.py      greedy generation, with and without a KV cache
    adamw.py       the optimizer, one function
    optimizers.py  Muon, Lion and Adafactor, a function each
    batch.py       what a batch is, and documents packed into a row
    params.py      parameter trees: plain, stacked, random

Letters for axes, the same in comments and in einsum strings:

    B  rows of the batch           D  model width (dim)             L  layers
    S  places of the queries       H  query heads (n_heads)         F  hidden width of the MLP
    T  places of the keys          G  key/value heads (n_kv_heads)  V  vocabulary
    K  width of a head             R  query heads per key/value head, H / G

`dx` is the gradient of the loss with respect to x and has the shape of x.
"""
