"""The chapter on many devices: its numbers, tables, figure and code are what the code gives."""

import json
import re

import pytest

from notes.figures import parallelism as figures

TEXT = figures.CHAPTER.read_text()
PROSE = re.sub(r"<!-- table .*?<!-- end -->|```.*?```", "", TEXT, flags=re.DOTALL)
PROSE = PROSE[: PROSE.index("## To try")]  # exercises and sources state no results


def test_sentences_say_what_the_code_computes():
    flat = " ".join(PROSE.split())
    for name, value in figures.facts().items():
        assert value in flat, f"{name}: the chapter does not say {value!r}"


def test_sentences_say_no_other_share():
    said = re.findall(r"[\d.]+ %", " ".join(PROSE.split()))
    assert set(said) <= set(figures.facts().values())
    assert len(said) >= 7


@pytest.mark.parametrize("name", figures.TABLES)
def test_tables_are_up_to_date(name):
    assert f"<!-- table {name} -->\n{figures.TABLES[name]()}\n<!-- end -->" in TEXT


def test_the_sweep_bears_out_what_the_chapter_concludes():
    sweep = figures.swept()
    waits = {key: figures.bubble(schedule, send=0.5) for key, schedule in sweep.items()}
    assert waits[8, 2] == waits[16, 2] < waits[4, 2] < waits[4, 1]
    assert 2 * figures.in_flight(sweep[8, 2])[0] < figures.in_flight(sweep[16, 2])[0]


def test_the_figure_is_up_to_date():
    svg = (figures.FOLDER / "parallelism-schedules.svg").read_text()
    assert "figures/parallelism-schedules.svg" in TEXT
    stored = re.search(r"<dc:description>(.*?)</dc:description>", svg, flags=re.DOTALL)[1]
    assert json.loads(stored.replace("&quot;", '"')) == figures.plotted()


def test_the_figure_is_the_same_bytes_each_time(tmp_path, monkeypatch):
    drawn = []
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        monkeypatch.setattr(figures, "FOLDER", tmp_path / run)
        figures.draw_schedules()
        drawn.append((tmp_path / run / "parallelism-schedules.svg").read_bytes())
    assert drawn[0] == drawn[1]


def test_code_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) == 1
    exec(blocks[0], {})


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (figures.CHAPTER.parent / target).exists(), target
