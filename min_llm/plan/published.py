"""Table 4 of "The Llama 3 Herd of Models": how Llama 3 405B was laid out on up to 16,384 H100s, and how fast it was.

MFU = BF16 TFLOP/s reached on each GPU / 989.4, the H100's dense peak
"""

from __future__ import annotations

import dataclasses

from min_llm.parallel.mesh import MeshConfig
from min_llm.plan.hardware import named


@dataclasses.dataclass(frozen=True)
class Row:
    """One line. rows: of a batch, for each data-parallel group. tflops: 1e12 FLOP/s a GPU. mfu: as printed, percent."""

    gpus: int
    tp: int
    cp: int
    pp: int
    dp: int
    seq_len: int
    rows: int
    tflops: float
    mfu: int

    @property
    def mesh(self) -> MeshConfig:
        """The paper's data parallelism is FSDP."""
        return MeshConfig(fsdp=self.dp, pp=self.pp, cp=self.cp, tp=self.tp)

    @property
    def tokens(self) -> int:
        """Tokens of a batch: 16.78 million on every line."""
        return self.dp * self.rows * self.seq_len

    @property
    def computed_mfu(self) -> float:
        """MFU in percent, from the FLOP/s."""
        return 100 * self.tflops * 1e12 / named("h100").peak("bfloat16")


TABLE_4 = (
    Row(gpus=8192, tp=8, cp=1, pp=16, dp=64, seq_len=8192, rows=32, tflops=430, mfu=43),
    Row(gpus=16384, tp=8, cp=1, pp=16, dp=128, seq_len=8192, rows=16, tflops=400, mfu=41),
    Row(gpus=16384, tp=8, cp=16, pp=16, dp=8, seq_len=131_072, rows=16, tflops=380, mfu=38),
)
