"""Fully sharded data parallelism and tensor parallelism, put on a model from outside.

Both replace parameters by DTensors: a tensor that knows how it is cut over a mesh of processes. Tensor parallelism goes
first, then FSDP cuts what is left of each parameter again, over the other axis of the mesh.
"""

from __future__ import annotations

import warnings

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from apps.torch_parallel.model import Llama


def tensor_parallel(model: Llama, mesh: DeviceMesh, sequence: bool = False) -> None:
    """Megatron's split of a layer (Shoeybi et al. 2019): the first matrices of attention and MLP by columns, so that
    a process has some heads and some hidden units, the last ones by rows, whose products are summed.

    sequence: between the products the sequence is cut too (Korthikanti et al. 2022). Norms then do their work once,
    not once a process, and the activations between layers take a share of the memory each. The sum becomes a
    reduce-scatter and the input of a product an all-gather; together they move what the all-reduce moved.
    """
    for field in ("n_kv_heads", "hidden_dim"):  # outputs are plain tensors, which do not know of uneven cuts
        if getattr(model.cfg, field) % mesh.size():
            raise ValueError(
                f"{field} is {getattr(model.cfg, field)}, which {mesh.size()} processes cannot share evenly: give "
                f"tensor parallelism a number of processes that divides {field}"
            )
    stream = Shard(1) if sequence else Replicate()  # the layout of x between layers
    # The input is made a DTensor once for wq, wk and wv together, so that its gradient is summed once and not thrice.
    styles: dict[str, ParallelStyle] = {
        "layers.*.attention": PrepareModuleInput(
            input_layouts=(stream, None, None, None), desired_input_layouts=(Replicate(), None, None, None)
        ),
        "layers.*.attention.wq": ColwiseParallel(),
        "layers.*.attention.wk": ColwiseParallel(),
        "layers.*.attention.wv": ColwiseParallel(),
        "layers.*.attention.wo": RowwiseParallel(output_layouts=stream),
        "layers.*.mlp": PrepareModuleInput(input_layouts=(stream,), desired_input_layouts=(Replicate(),)),
        "layers.*.mlp.w_gate": ColwiseParallel(),
        "layers.*.mlp.w_up": ColwiseParallel(),
        "layers.*.mlp.w_down": RowwiseParallel(output_layouts=stream),
    }
    if sequence:
        styles |= {"layers.*.attn_norm": SequenceParallel(), "layers.*.mlp_norm": SequenceParallel()}
    if model.embed is not None:  # the table is cut by rows: by the vocabulary
        styles["embed"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=stream)
    if model.head is not None:  # by columns: by the vocabulary too; the logits are gathered for the loss
        styles["head"] = ColwiseParallel(input_layouts=stream, output_layouts=Replicate())
        if sequence:
            styles["final_norm"] = SequenceParallel()
    parallelize_module(model, mesh, styles)


def fsdp(model: Llama, mesh: DeviceMesh, reshard_after_forward: bool = True) -> None:
    """FSDP2 (Zhao et al. 2023): each process keeps a share of every parameter, and gathers a layer when it runs.

    reshard_after_forward=False keeps a gathered layer until its backward pass, as Llama 3 was trained (section 3.3.2):
    half of the all-gathers for the memory of the whole model.
    """
    # under tensor parallelism the logits are a view; nobody changes them in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for layer in model.layers.values():
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh, reshard_after_forward=reshard_after_forward)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Weights sum to 1 over the whole batch, so gradients are to be added. FSDP divides by the number of
            # processes unless told otherwise, and gloo knows no sum with a factor.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
