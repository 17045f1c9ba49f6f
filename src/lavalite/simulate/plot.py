"""Reports as pictures, by matplotlib (the extra `plot`): one run over time, or a sweep side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lavalite.base.errors import InputError
from lavalite.simulate.report import Report
from lavalite.simulate.sweep import Swept

KINDS_OF_FILE = (".png", ".svg")
PANELS = (
    ("makespan", "makespan (s)"),
    ("wait_p90", "wait, p90 (s)"),
    ("slowdown_p90", "slowdown, p90"),
    ("use", "use of the rarest kind"),
)


def check_plot(path: Path) -> None:
    """Raise InputError where no picture can be made of that name, before anything is run."""
    if path.suffix not in KINDS_OF_FILE:
        hint = "Let it end in .png or .svg."
        raise InputError(f"{path} is no picture that can be drawn", field="--plot", hint=hint)
    if not path.absolute().parent.is_dir():
        raise InputError(
            f"there is no folder {path.absolute().parent}", field="--plot", hint="Make it, or name another."
        )
    _pyplot()


def plot_run(report: Report, path: Path) -> None:
    """Use of each kind over time."""
    figure, axes = _pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    for kind in sorted({kind for _, use in report.use_over_time for kind in use}):
        points = [(at / 60, use.get(kind, 0.0)) for at, use in report.use_over_time]
        axes.plot([at for at, _ in points], [use for _, use in points], label=kind, drawstyle="steps-post")
    axes.set(xlabel="minutes", ylabel="committed", ylim=(0, 1.02), title=report.name)
    axes.legend(loc="best")
    _save(figure, path)


def plot_sweep(runs: Sequence[Swept], path: Path) -> None:
    """A panel a measure; the last name swept goes along the axis, each other combination is a line."""
    names = list(runs[0].settings)
    along = names[-1]
    figure, axes = _pyplot().subplots(2, 2, figsize=(10, 7), layout="constrained")
    lines: dict[str, list[Swept]] = {}
    for run in runs:
        rest = ", ".join(f"{name} {run.settings[name]}" for name in names[:-1])
        lines.setdefault(rest, []).append(run)
    for (measure, title), panel in zip(PANELS, axes.flat, strict=True):
        for label, line in lines.items():
            values = [value_of(run.report, measure) for run in line]
            panel.plot([str(run.settings[along]) for run in line], values, marker="o", label=label or None)
        panel.set(title=title, xlabel=along)
        panel.set_ylim(bottom=0)
    if any(lines):
        axes.flat[0].legend(loc="best")
    _save(figure, path)


def value_of(report: Report, measure: str) -> float:
    """One figure of a report, 0 where there is none."""
    found: Any
    match measure:
        case "makespan":
            found = report.makespan
        case "use":
            found = next(iter([report.use[kind] for kind in ("gpu", "cpu") if kind in report.use]), None)
        case _:
            family, _, part = measure.partition("_")
            found = getattr(report, family)[part]
    return float(found or 0.0)


def _save(figure: Any, path: Path) -> None:
    """The same picture for the same figures: no date in it, and no random names."""
    try:
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}", field="--plot", hint="Name another."
        ) from None


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        hint = "pip install 'lavalite[plot]', or leave --plot out."
        raise InputError("matplotlib is not installed, which draws plots", field="--plot", hint=hint) from None
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "lavalite"
    from matplotlib import pyplot

    return pyplot
