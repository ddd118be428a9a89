"""Models that benchmarks load, as files that every program reads: GGUF for us and llama.cpp, a folder for transformers.

They are written by min_llm at the first use and kept in $MIN_LLM_HOME/bench, under a name that changes with the
code that writes them.
"""

import functools
import hashlib
import itertools
import shutil
from pathlib import Path
from typing import Any

from min_llm import platform

SMOL = "smollm2-135m"
BILLION = "llama3.2-1b"  # that shape with random weights
MODELS = (SMOL, BILLION)
KINDS = {"float32": "F32", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}  # precision: GGUF's name
METHODS = {"q8_0": "w8a8", "q4_0": "int4"}  # what `min-llm quantize` calls ours of as many bits
SEED = 0
NAMED = "smollm2-135m-instruct"


def gguf(model: str, precision: str) -> Path:
    """The model in one file whose matrices have this precision."""
    from min_llm.formats import gguf_model
    from min_llm.tokenizers import export

    path = shelf() / f"{model}.{precision}.gguf"
    if not path.exists():
        loaded = _loaded(model)
        metadata = export.gguf_metadata(loaded.tokenizer, loaded.template, loaded.opening)
        gguf_model.write(path, loaded.cfg, loaded.params, KINDS[precision], metadata)
    return path


def folder(model: str, precision: str) -> Path:
    """The model as a Hugging Face folder: float32 and bfloat16 for every program, METHODS of quantization for us."""
    from min_llm import models
    from min_llm.formats import huggingface
    from min_llm.quant.quantize import quantize
    from min_llm.tokenizers import export

    path = shelf() / f"{model}.{precision}"
    if not path.exists():
        loaded = _loaded(model)
        params, dtype = loaded.params, precision
        if precision in METHODS:
            params, dtype = quantize(params, models.spec(loaded.cfg), METHODS[precision]), "bfloat16"
        files = export.folder_files(loaded.tokenizer, loaded.template, loaded.opening, loaded.cfg.max_seq_len)
        huggingface.write(path, loaded.cfg, params, dtype, extra=files)
    return path


def config(model: str) -> Any:
    """Its shape."""
    from min_llm.formats import gguf, gguf_model, named
    from min_llm.models import preset

    if model != SMOL:
        return preset(model)
    path = named.fetched(NAMED)
    return gguf_model.config_of(gguf.read(path), path)


def weight_bytes(model: str, precision: str) -> int:
    """Bytes of the tensors that a token needs whole; a table of embeddings that is not the head too is only looked
    into."""
    from min_llm.formats.gguf import read

    file = read(gguf(model, precision))
    looked_into = {"token_embd.weight"} if "output.weight" in file.tensors else set()
    return sum(t.data.nbytes for name, t in file.tensors.items() if name not in looked_into)


@functools.cache
def shelf() -> Path:
    """The folder of files that this code writes; those that older code wrote are removed."""
    from min_llm import formats, quant

    source = sorted(p for room in (formats, quant) for p in Path(room.__file__).parent.glob("*.py"))  # type: ignore
    key = hashlib.sha256(b"".join([Path(__file__).read_bytes(), *(p.read_bytes() for p in source)]))
    folder = platform.home() / "bench" / key.hexdigest()[:12]
    if not folder.exists():
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
    return folder


def forget() -> None:
    """Free the parameters that files were written from."""
    _loaded.cache_clear()


@functools.lru_cache(maxsize=1)
def _loaded(model: str) -> Any:
    from min_llm.infer.load import Loaded, load
    from min_llm.models import init, preset
    from min_llm.nn.runtime import RuntimeConfig, resolve

    if model == SMOL:
        return load(NAMED)
    cfg = preset(model)
    runtime = resolve(RuntimeConfig(dtype="float32"), cfg.n_layers)
    tokenizer = every_pair(cfg.vocab_size)
    return Loaded(f"random {model}", cfg, init(cfg, SEED), runtime, tokenizer)


def every_pair(size: int) -> Any:
    """A tokenizer with a vocabulary of this size: bytes, pairs of bytes, and what fits of triples."""
    from min_llm.tokenizers import split
    from min_llm.tokenizers.bpe import BPE

    words = itertools.chain.from_iterable(itertools.product(range(256), repeat=n) for n in (1, 2, 3))
    return BPE(tuple(map(bytes, itertools.islice(words, size - 1))), split.LLAMA3)
