"""The case file that both sides read, and parameters between our names and layouts and PyTorch's.

A case is an .npz: `config` (JSON text), `batch/<field>`, `params/<name>`, and what JAX made of them, `loss` and
`gradients/<name>`. Names and layouts are ours, a layer at a time:

    embed [v,d]   layers.0.wq [d,h,k]   layers.0.wo [h,k,d]   layers.0.w_gate [d,f]   final_norm [d]   head [d,v] …

A PyTorch Linear keeps [out, in], so a matrix is ours with its inputs and outputs flattened, transposed.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from apps.torch_parallel.model import Config

Arrays = dict[str, np.ndarray]

# Putting a tensor together that is cut over two axes of a mesh takes two all-gathers, and every process says so.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


class Case:
    """A case file; arrays are read when they are asked for, so no process holds the whole model."""

    def __init__(self, path: Path) -> None:
        self.file = np.load(path, allow_pickle=False)
        self.config = Config.of(json.loads(str(self.file["config"])))
        self.loss = float(self.file["loss"])

    def params(self, name: str) -> np.ndarray:
        return self.file[f"params/{name}"]

    def gradients(self, name: str) -> np.ndarray:
        return self.file[f"gradients/{name}"]

    def batch(self, device: torch.device, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """The `part`-th of `parts` equal shares of the rows. The weights sum to 1 over all of them."""
        made = {}
        for field in ("tokens", "targets", "positions", "segment_ids", "weights"):
            rows = self.file[f"batch/{field}"]
            if len(rows) % parts:
                raise ValueError(f"{len(rows)} rows cannot be shared evenly by {parts} processes")
            share = torch.from_numpy(np.split(rows, parts)[part]).to(device)
            made[field] = share if field == "weights" else share.long()
        return made


def our_name(name: str) -> str:
    """ "layers.3.attention.wq.weight" -> "layers.3.wq" """
    return re.sub(r"\.(attention|mlp|weight)\b", "", name)


def _is_linear(name: str, p: Tensor) -> bool:
    return p.ndim == 2 and name != "embed"


@torch.no_grad()
def load(model: nn.Module, case: Case, device: torch.device) -> None:
    """Give a model that was made on the meta device its memory and the case's parameters; each process copies its
    shares of one parameter after the other."""
    model.to_empty(device=device)
    for torch_name, p in model.named_parameters():
        name = our_name(torch_name)
        ours = torch.from_numpy(case.params(name))
        whole = (ours.reshape(p.shape[1], p.shape[0]).T if _is_linear(name, p) else ours).to(device)
        if isinstance(p, DTensor):  # no process sends anything: each has read the file
            whole = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)
        p.copy_(whole)


def gradients(modules: Iterable[nn.Module], case: Case) -> Arrays:
    """The gradients of the parameters in these modules, whole, with our names and layouts.

    Every process of the mesh must call this: putting a gradient together is a collective operation.
    """
    found = {}
    for module in modules:
        for torch_name, p in module.named_parameters():
            name, grad = our_name(torch_name), p.grad
            if grad is None:
                raise ValueError(f"{torch_name} has no gradient")
            whole = grad.full_tensor() if isinstance(grad, DTensor) else grad
            ours = (whole.T if _is_linear(name, p) else whole).contiguous().cpu().numpy()
            found[name] = ours.reshape(case.gradients(name).shape)
    return found
