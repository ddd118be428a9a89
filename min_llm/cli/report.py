"""`min-llm report` and `min-llm probe plot`: look at a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from min_llm.train.history import Probes

probe_app = typer.Typer(
    help="Statistics inside the model, recorded with train.probe=true.", no_args_is_help=True
)

Run = Annotated[Path, typer.Argument(help="run folder, as made by `min-llm train`", show_default=False)]


def report(
    run: Run,
    open_: Annotated[bool, typer.Option("--open", help="open it in the browser")] = False,
) -> None:
    """Write report.html of a run, finished or not, and print its path."""
    from min_llm.train.report import make_report

    path = make_report(run)
    print(path)
    if open_:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


@probe_app.callback()
def probe() -> None:
    """Statistics inside the model, recorded with train.probe=true."""


@probe_app.command()
def plot(
    run: Run,
    out: Annotated[
        Path | None,
        typer.Option(help="picture to write (.png, .svg, .pdf); default: probes.png in the run folder"),
    ] = None,
) -> None:
    """Draw layer x step heat maps of activations, attention entropy, gradients and parameters; prints the path."""
    from min_llm.config import UserError
    from min_llm.train import history

    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run: it has no config.yaml. Give a folder made by `min-llm train`.")
    probes = history.probes(history.read_rows(run)[0])
    if probes is None:
        raise UserError(
            f"{run} has recorded no probes. Train with train.probe=true (every train.probe_every steps), under a "
            "name of its own, then plot again."
        )
    path = out or run / "probes.png"
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out is {str(path)!r}; its name must end in .png, .svg or .pdf.")
    figure = draw(probes, run.name)
    figure.savefig(path, dpi=130)
    print(path)


GROUPS = (
    ("activation", ("rms", "max", "kurtosis"), ""),
    ("entropy", ("mean", "min"), ""),
    ("grad", ("rms",), "gradient of "),
    ("param", ("rms",), "parameter "),
)


def draw(probes: Probes, title: str) -> Figure:
    """All heat maps of a run in one figure, four in a row."""
    import numpy as np
    from matplotlib.figure import Figure

    from min_llm.train.figures import colour_scale

    panels = [
        (prefix + name.replace("/", ", "), table)
        for kind, statistics, prefix in GROUPS
        for statistic in statistics
        for name, table in probes.group(kind).items()
        if name.endswith(statistic)
    ]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.2 * rows + 0.5), layout="constrained")
    figure.suptitle(f"{title}: layers by steps")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    ends = [float(probes.steps[0]), float(probes.steps[-1])]
    for axis, (name, table) in zip(axes, panels, strict=False):
        values, log = colour_scale(table)
        extent = (ends[0], max(ends[1], ends[0] + 1), len(table) - 0.5, -0.5)
        image = axis.imshow(
            np.ma.masked_invalid(values), aspect="auto", interpolation="nearest", extent=extent
        )
        axis.set_title(name + (" (log10)" if log else ""), fontsize=9)
        axis.set_yticks([0, len(table) - 1] if len(table) > 1 else [])
        axis.tick_params(labelsize=8)
        figure.colorbar(image, ax=axis).ax.tick_params(labelsize=8)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return figure
