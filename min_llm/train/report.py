"""report.html: one self-contained page about a run, made from its folder; it asks for nothing from anywhere."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from min_llm import config as config_lib
from min_llm import models
from min_llm import spec as spec_lib
from min_llm.config import UserError
from min_llm.plan.hardware import datasheet
from min_llm.platform import write_atomic
from min_llm.reporting import clock, page, reporter
from min_llm.train import figures, history, report_mix
from min_llm.train.checkpoints import Checkpoints
from min_llm.train.config import RunConfig
from min_llm.train.figures import Mark, Series, number, percent
from min_llm.train.history import Row, column
from min_llm.train.ramp import Ramp

TEMPLATE = Path(__file__).with_name("report.html.jinja")
LONGEST_SAMPLE = 4000  # characters
VISIBLE = {c: 0x2400 + c for c in range(32) if chr(c) not in "\t\n"}  # control characters as their pictures
NORM_DECADES = 30  # a gradient norm that varies by more is drawn on a logarithmic scale


# What a damaged folder or a full disk can bring about; anything else is a mistake in the program and is shown.
FAILURES = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    jinja2.TemplateError,
)


class Card(NamedTuple):
    """A number of the head of the page: what it is, its value, and what one must know to read it."""

    name: str
    value: str
    unit: str = ""
    about: str = ""
    wide: bool = False


class Line(NamedTuple):
    """A line of the configuration."""

    text: str
    changed: bool
    help: str


def write_report(folder: Path, running: bool | None = None) -> Path:
    """Write the report of a run and return its path. Never fails a training: a report that cannot be made is a
    warning. running: whether the run goes on; None looks at the lock of the folder."""
    try:
        return make_report(folder, running)
    except FAILURES as error:
        reporter().warn(
            f"The report of {folder} could not be written ({type(error).__name__}: {error}). The run itself is not "
            f"affected; `min-llm report {folder}` tries again."
        )
        return folder / "report.html"


def make_report(folder: Path, running: bool | None = None) -> Path:
    """`write_report` that raises: UserError where the folder is no run."""
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder} is not a run: it has no config.yaml. Give a folder made by `min-llm train`."
        )
    path = folder / "report.html"
    write_atomic(path, render(folder, history.is_running(folder) if running is None else running))
    return path


def render(folder: Path, running: bool = False) -> str:
    """The page."""
    raw = config_lib.read(folder / "config.yaml")
    try:
        cfg = config_lib.build(RunConfig, raw)
    except UserError:  # a run of another version: shown as it is
        cfg = None
    rows, torn = history.read_rows(folder)
    starts = history.starts(folder)
    steps = _integer(config_lib.flatten(raw).get("train.steps"))
    saved = Checkpoints(folder / "checkpoints").latest()
    state, sentence, done = history.state(rows, steps, running, saved)
    baselines = history.read_json(folder / "baselines.json")
    samples = history.samples(folder)
    return page.render(
        TEMPLATE,
        name=raw.get("name") or folder.name,
        state=state,
        sentence=sentence,
        summary=summary(cfg, rows, done),
        cards=cards(rows, starts),
        comparison=Markup(comparison(rows, baselines)),
        loss=Markup(loss_figure(rows)),
        figures=[Markup(f) for f in small_figures(rows) if f],
        probes=[(title, [Markup(f) for f in maps]) for title, maps in probe_figures(rows)],
        sources=report_mix.table(rows, baselines),
        mix=[Markup(f) for f in report_mix.curves(rows) if f],
        events=event_lines(rows, torn),
        samples=[(step, [t[:LONGEST_SAMPLE].translate(VISIBLE) for t in texts]) for step, texts in samples],
        config=config_lines(raw),
        machine=machine(starts),
        starts=starts,
        data=data_lines(folder),
    )


def summary(cfg: RunConfig | None, rows: list[Row], done: int) -> str:
    """One sentence: model, size, work."""
    parts = []
    if cfg is not None:
        t = cfg.train
        parts.append(cfg.model.family + (f", {n:,} parameters" if (n := _parameters(cfg)) else ""))
        ramp = Ramp.of(t)
        parts.append(f"{done:,} steps of {ramp.words('×')} tokens: {number(ramp.tokens(done))} tokens")
    if seconds := history.training_seconds(rows):
        parts.append(f"{clock(seconds)} in steps")
    return " · ".join(parts)


def _parameters(cfg: RunConfig) -> int:
    try:
        return spec_lib.count(models.spec(cfg.model))
    except UserError:  # the vocabulary is not known yet
        return 0


def cards(rows: list[Row], starts: list[dict[str, Any]]) -> list[Card]:
    """The final numbers."""
    found = []
    val = [p for p in column(rows, "val", "loss") if math.isfinite(p[1])]
    if val:
        step, best = min(val, key=lambda p: p[1])
        at = "" if step == val[-1][0] else f"; best {best:.4f} at step {step:,.0f}"
        about = f"perplexity {math.exp(min(val[-1][1], 700)):,.1f} a token{at}"
        found.append(Card("validation loss", f"{val[-1][1]:.4f}", "nats/token", about))
    if train := column(rows, "train", "loss"):
        about = f"mean of the steps up to {train[-1][0]:,.0f}"
        found.append(Card("training loss", f"{train[-1][1]:.4f}", "nats/token", about))
    if (bits := bits_per_byte(rows)) is not None:
        final = column(rows, "final", "loss")
        also = f", whose loss is {final[-1][1]:.4f} nats/token" if final else ""
        found.append(Card("bits per byte", f"{bits:.4f}", "", f"over the whole validation text{also}"))
    if rates := [y for _, y in column(rows, "train", "tokens_per_second") if math.isfinite(y)]:
        found.append(Card("throughput", number(statistics.median(rates)), "tokens/s", "median of all rows"))
        if starts and (card := mfu_card(statistics.median(rates), starts[-1])):
            found.append(card)
    if (share := history.goodput(rows, starts)) is not None:
        about = "of the time since the first start went into steps whose result is kept"
        found.append(Card("goodput", percent(share), "", about))
    if memory := _peak(rows, "device_memory"):
        found.append(Card("device memory", f"{memory / 2**30:.2f}", "GiB", "peak, of the first device"))
    if memory := _peak(rows, "peak_memory"):
        found.append(Card("process memory", f"{memory / 2**30:.2f}", "GiB", "peak resident set"))
    return found


def _peak(rows: list[Row], name: str) -> float:
    return max((y for _, y in column(rows, "train", name) if math.isfinite(y)), default=0.0)


def mfu_card(rate: float, start: dict[str, Any]) -> Card | None:
    """Model FLOPs utilisation with its formula and both peaks."""
    flops, peak = start.get("flops_per_token"), start.get("peak_flops_measured")
    if not flops or not peak:
        return None
    dtype = (start.get("runtime") or {}).get("dtype", "")
    about = f"({start.get('flops_formula')}) = {figures.quantity(flops, 'FLOP')} a token, of "
    about += f"{figures.quantity(peak, 'FLOP/s')} measured{' in ' * bool(dtype)}{dtype}. "
    known = datasheet(str(start.get("device", "")))
    listed = (known.flops_float32 if dtype == "float32" else known.flops_bfloat16) if known else 0.0
    if known and listed:
        share = percent(rate * flops / listed)
        about += f"Of the {figures.quantity(listed, 'FLOP/s')} in the datasheet ({known.name}): {share}."
    else:
        about += "No datasheet peak is known for this device."
    return Card("MFU", percent(rate * flops / peak), "", about, wide=True)


def bits_per_byte(rows: list[Row]) -> float | None:
    """Of the latest row that scored the whole validation text."""
    found = [row["bits_per_byte"] for row in rows if isinstance(row.get("bits_per_byte"), (int, float))]
    return found[-1] if found else None


def comparison(rows: list[Row], baselines: Any) -> str:
    """Bits per byte of this run beside a compressor's and an n-gram's (min_llm/evals/baselines.py)."""
    ours = bits_per_byte(rows)
    if not isinstance(baselines, dict) or ours is None:
        return ""
    xz, gram = baselines.get("xz_9") or {}, baselines.get("kneser_ney") or {}
    bars = [
        ("this model", ours, True),
        (f"{gram.get('order', 5)}-gram, interpolated Kneser-Ney", gram.get("bits_per_byte"), False),
        ("xz -9, knowing the training text", xz.get("conditional"), False),
        ("xz -9", xz.get("alone"), False),
    ]
    shown = [(name, float(value), us) for name, value, us in bars if isinstance(value, (int, float))]
    return figures.bars(shown, "bits per byte of the validation text") if len(shown) > 1 else ""


def loss_figure(rows: list[Row]) -> str:
    train, val = column(rows, "train", "loss"), column(rows, "val", "loss")
    spikes = [
        Mark(
            float(e["step"]), f"loss spike: {e['loss']:.3f}, {e['z']:.1f} deviations", float(e["loss"]), "bad"
        )
        for e in history.events(rows, "spike")
    ]
    bad = [Mark(float(e["step"]), "not finite", None, "bad") for e in history.events(rows, "not finite")]
    series = [
        Series("training", train, "a", faint=True),
        Series("training, smoothed", figures.smooth(train), "a"),
        Series("validation", val, "b", dots=True),
    ]
    return figures.curve(
        "Loss",
        [s for s in series if s.points],
        unit="nats a token, over steps",
        fmt=lambda y: f"{y:.3f}".removesuffix("0").removesuffix("0"),
        marks=[*spikes, *bad, *_resumed(rows)],
        tall=True,
    )


def _resumed(rows: list[Row]) -> list[Mark]:
    return [Mark(step, "resumed after this row") for step, _ in history.resumes(rows)]


def small_figures(rows: list[Row]) -> list[str]:
    """Learning rate, gradient norm, throughput, data wait."""
    norms = column(rows, "train", "grad_norm")
    finite = [y for _, y in norms if math.isfinite(y) and y > 0]
    log = bool(finite) and max(finite) > NORM_DECADES * min(finite)
    rate, wait = column(rows, "train", "tokens_per_second"), column(rows, "train", "data_wait")
    marks = _resumed(rows)

    def both(name: str, points: list[history.Point], colour: str) -> list[Series]:
        return [Series(name, points, colour, faint=True), Series(name, figures.smooth(points), colour)]

    scale = "before clipping, logarithmic" if log else "before clipping"
    return [
        figures.curve(
            "Learning rate", [Series("learning rate", column(rows, "train", "lr"), "c")], zero=True
        ),
        figures.curve("Gradient norm", both("gradient norm", norms, "d"), unit=scale, log=log, marks=marks),
        figures.curve("Throughput", both("tokens/s", rate, "e"), unit="tokens/s", zero=True, marks=marks),
        figures.curve(
            "Data wait", both("wait", wait, "f"), unit="of the step time", fmt=percent, zero=True, marks=marks
        ),
    ]


def probe_figures(rows: list[Row]) -> list[tuple[str, list[str]]]:
    """Heat maps, layer by step, in groups."""
    probes = history.probes(rows)
    if probes is None:
        return []
    groups = []
    for kind, title, statistics_ in (
        ("activation", "Activations", ("rms", "max")),
        ("entropy", "Attention entropy, nats", ("mean", "min")),
        ("grad", "Gradients", ("rms",)),
        ("param", "Parameters", ("rms",)),
    ):
        tables = probes.group(kind)
        maps = [
            figures.heat_map(name.replace("/", ", "), table, probes.steps.tolist())
            for statistic in statistics_
            for name, table in tables.items()
            if name.endswith(statistic)
        ]
        if maps := [m for m in maps if m]:
            groups.append((title, maps))
    return groups


def event_lines(rows: list[Row], torn: int) -> list[str]:
    """What happened to the run, as sentences."""
    lines = [
        f"Step {e['step']:,}: loss spike, {e['loss']:.3f} is {e['z']:.1f} deviations above the recent mean."
        for e in history.events(rows, "spike")
    ]
    lines += [
        f"Step {e['step']:,}: update left out, loss {e['loss']:.3f}, gradient norm {e['grad_norm']:.3g}."
        for e in history.events(rows, "skipped")
    ]
    lines += [f"Resumed between steps {a:,.0f} and {b:,.0f}." for a, b in history.resumes(rows)]
    lines += [
        f"Step {e['step']:,}: loss {e.get('loss')}, gradient norm {e.get('grad_norm')}; training stopped."
        for e in history.events(rows, "not finite")
    ]
    if torn:
        lines.append(f"{torn} unreadable line{'s' * (torn > 1)} of metrics.jsonl left out.")
    return lines


def config_lines(raw: dict[str, Any]) -> list[Line]:
    """The configuration as YAML, a line a key, with what differs from the defaults and each key's help."""
    family = (raw.get("model") or {}).get("family", "llama")
    defaults, help_ = {}, {}
    if family in models.FAMILIES:
        model = models.module(family).Config
        defaults = config_lib.flatten(config_lib.dump(RunConfig(model=model())))
        rows = config_lib.fields_help(RunConfig) + config_lib.fields_help(model, "model.")
        help_ = {key: text for key, _, _, text in rows}
    lines: list[Line] = []

    def add(tree: dict[str, Any], prefix: str, indent: str) -> None:
        for key, value in tree.items():
            path = prefix + key
            if isinstance(value, dict) and value:
                lines.append(Line(f"{indent}{key}:", True, ""))
                add(value, path + ".", indent + "  ")
            else:
                changed = path not in defaults or defaults[path] != value
                lines.append(Line(f"{indent}{key}: {_scalar(value)}", changed, help_.get(path, "")))

    add(raw, "", "")
    return lines


def _scalar(value: Any) -> str:
    """A YAML value on one line."""
    if isinstance(value, str) and value and all(c.isalnum() or c in "-_./:" for c in value):
        return value
    return json.dumps(value, ensure_ascii=False)


def machine(starts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Hardware, software and choices of the latest start."""
    if not starts:
        return []
    s = starts[-1]
    rows = [
        (
            "device",
            f"{s.get('device')} × {s.get('devices')}" if s.get("devices", 1) != 1 else s.get("device"),
        ),
        ("processor", f"{s.get('cpu')}, {s.get('cores')} cores"),
        ("features", s.get("cpu_features")),
        ("Python", s.get("python")),
        *(s.get("versions") or {}).items(),
        ("XLA_FLAGS", s.get("xla_flags") or "none"),
        *((f"runtime.{k}", v) for k, v in (s.get("runtime") or {}).items()),
        ("measured peak", figures.quantity(float(s.get("peak_flops_measured") or 0), "FLOP/s")),
        ("commit", s.get("commit") or "not from a checkout"),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def data_lines(folder: Path) -> list[str]:
    """What data.json says of the text: sizes, licence, attribution."""
    found = history.read_json(folder / "data.json")
    lines = found.get("lines") if isinstance(found, dict) else None
    return [str(line) for line in lines] if isinstance(lines, list) else []


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0
