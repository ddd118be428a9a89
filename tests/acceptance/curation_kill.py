"""Curation of real text, killed with kill -9 at 20 moments of its three walks, ends as if not (2 minutes).

The text is Python's standard library and Wikipedia's leads in two languages; the steps are herd_mini's. A kill falls a
random part of a second after some more files are finished; a run that ends before 20 kills are done is compared and
begun anew. Compared is every byte of the output, and the report without its seconds.
"""

from __future__ import annotations

import random
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from min_llm.config import build, to_yaml
from min_llm.data.curate.settings import CurateConfig
from scripts.evidence import Claim, claim
from tests.data.curate.runs import command, finished, kill, result

KILLS = 20
SEED = 5
MOST = 3  # files finished between two kills
SETTINGS = {
    "inputs": {"code": "python-stdlib", "other": ["wiki-fr", "wiki-es"]},
    "steps": {
        "pii": None,
        "exact": None,
        "minhash": None,
        "lines": {"sources": ["other"]},
        "repetition": {"sources": ["other"]},
        "kl": {"sources": ["other"]},
    },
    "workers": 2,
}


def run() -> Iterator[Claim]:
    with tempfile.TemporaryDirectory(prefix="min_llm-curation-") as folder:
        path = Path(folder) / "curate.yaml"
        path.write_text(to_yaml(build(CurateConfig, SETTINGS | {"output": f"{folder}/whole"})))
        subprocess.run(command(path), check=True, stdout=subprocess.DEVNULL)
        expected = result(Path(folder) / "whole")
        draw = random.Random(SEED)
        kills, runs, walks, different = 0, 0, set(), []
        while kills < KILLS:
            output = Path(folder) / f"killed-{runs}"
            again = command(path, f"output={output}")
            status = -signal.SIGKILL
            while status == -signal.SIGKILL and kills < KILLS:
                status, error = kill(again, output, draw.randint(0, MOST), draw.uniform(0, 1.5))
                if status == -signal.SIGKILL:
                    kills += 1
                    walks |= {Path(name).parts[1] for name in finished(output)}
                elif status:
                    raise RuntimeError(error[-2000:])
            if status:
                subprocess.run(again, check=True, stdout=subprocess.DEVNULL)
            runs += 1
            if result(output) != expected:
                different.append(output.name)
        yield claim(f"processes killed with kill -9, in {runs} runs", kills, str(KILLS), kills == KILLS)
        yield claim(
            "walks over the text that had begun at a kill", ", ".join(sorted(walks)), "reported", bool(walks)
        )
        yield claim("runs whose output differs", ", ".join(different) or 0, "0", not different)
