"""Fast versions of single operations, each beside the plain reference it must equal.

`attention` is the registry of attention implementations; `mask` describes which keys a query sees; `product` and
`softmax_loss` are what else a model spends its time in, `rows` is the product of decoding; `cpu` holds the C++ kernels
behind them; `peaks` measures what the machine can do.
"""
