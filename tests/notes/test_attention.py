"""The chapter on attention: its numbers, tables, figures and code are what the code gives."""

import pathlib
import re

import numpy as np
import pytest

from notes.figures import attention as figures
from notes.figures import drawing

TEXT = figures.CHAPTER.read_text()
PROSE = re.sub(r"<!-- table .*?<!-- end -->|```.*?```", "", TEXT, flags=re.DOTALL)
PROSE = PROSE[: PROSE.index("## To try")]  # exercises and sources state no results


def test_sentences_say_what_the_code_computes():
    flat = " ".join(PROSE.split())
    for name, value in figures.facts().items():
        assert value in flat, f"{name}: the chapter does not say {value!r}"


def test_sentences_say_no_other_number():
    """Numbers with a thousands separator, a decimal point or a unit must be among the facts."""
    flat = " ".join(re.sub(r"arXiv [\d.]+|section [\d.]+", "", PROSE).split())
    said = re.findall(r"\d[\d,]*(?:\.\d+)?(?: (?:bytes|B|KiB|MiB|GiB|TiB|times)\b)?", flat)
    numbers = [n.rstrip(",") for n in said]
    known = " ".join(figures.facts().values())
    strange = [n for n in numbers if re.search(r"[,. ]", n) and n not in known]
    assert not strange
    assert len(numbers) > 20


@pytest.mark.parametrize("name", figures.TABLES)
def test_tables_are_up_to_date(name):
    assert f"<!-- table {name} -->\n{figures.TABLES[name]()}\n<!-- end -->" in TEXT


@pytest.mark.parametrize("name", ["mask", "memory", "kv"])
def test_figures_are_up_to_date(name):
    assert f"figures/attention-{name}.svg" in TEXT
    assert drawing.stored(figures.FOLDER / f"attention-{name}.svg") == figures.plotted()[name]


def test_code_blocks_run():
    namespace = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, namespace)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (pathlib.Path(figures.CHAPTER).parent / target).exists(), target


def test_published_cache_sizes():
    """Row L3-2.2: 131,072 / 327,680 / 516,096 bytes per token in bf16."""
    assert [kinds["GQA"] for _, _, kinds in figures.kv_rows()] == [131_072, 327_680, 516_096]


def test_this_jax_plans_memory_as_the_chapter_says():
    """Whatever the version: quadratic against linear, and reference holds whole score matrices."""
    cfg = figures.preset("llama3-8b")
    planned = {n: [figures.xla_bytes(n, s, cfg) for s in (512, 1024)] for n in ("reference", "blockwise")}
    assert planned["reference"][1] > 2 * figures.score_bytes(cfg, 1024)
    assert 3.5 < planned["reference"][1] / planned["reference"][0] < 4.2
    assert 1.8 < planned["blockwise"][1] / planned["blockwise"][0] < 2.4


@pytest.mark.parametrize(
    "n_bytes, text",
    [(12, "12 B"), (2**33, "8 GiB"), (1008 * 2**30, "1,008 GiB"), (1.5 * 2**20, "1.5 MiB"), (2**41, "2 TiB")],
)
def test_sizes_in_words(n_bytes, text):
    assert drawing.size(n_bytes) == text


def test_figures_are_the_same_bytes_each_time(tmp_path, monkeypatch):
    drawn = []
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        monkeypatch.setattr(figures, "FOLDER", tmp_path / run)
        figures.draw_mask()
        drawn.append((tmp_path / run / "attention-mask.svg").read_bytes())
    assert drawn[0] == drawn[1]
    assert np.size(drawn[0]) > 0
