"""Figures in one style: a light ground of their own, so that they read the same in light and dark themes.

Colours are Okabe and Ito's, told apart also by shape or label (https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

import base64
import functools
import gc
import html
import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mac_lora_helpers.text import duration
from mac_lora_helpers.ui.memory_form import shares
from mac_lora_helpers.ui.parts import headless
from mac_lora_helpers.ui.progress import Line

BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#666666"
#: Beside blue bars: lighter than they are, so that the two differ in grey print too, and still 3 : 1 on white.
PALE = "#949494"
#: The red of lines is too light for text on white (4.5 : 1 is wanted).
RED_TEXT = "#a84400"
_STYLE = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "text.color": "#222222",
    "axes.labelcolor": "#222222",
    "xtick.color": "#222222",
    "ytick.color": "#222222",
    "legend.frameon": False,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
}


#: In JupyterLab's dark theme a white figure glares: lightness is turned round, hues stay where they are. The attribute is
#: JupyterLab's own; elsewhere the rule finds nothing.
_DARK = "<style>[data-jp-theme-light='false'] img.mlh-figure{filter:invert(.89) hue-rotate(180deg)}</style>"

#: Narrower than this many pixels its letters could not be read: in a narrow window the figure is scrolled instead.
_READABLE = 640


class Picture(Figure):
    """A figure of its own (not pyplot's): shown once where it is the cell's value, never left open.

    Attributes:
        alt: the picture in words, for readers who cannot see it and for terminals; its titles where nothing else was said.
    """

    alt: str = ""

    @property
    def words(self) -> str:
        """``alt``, or the titles."""
        titles = [self.get_suptitle(), *(axes.get_title(loc="left") or axes.get_title() for axes in self.axes)]
        return self.alt or ": ".join(dict.fromkeys(title for title in titles if title))

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=96)
        return buffer.getvalue()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The picture drawn once; as HTML because JupyterLab gives a plain PNG no alternative text."""
        content, words = base64.b64encode(self._repr_png_()).decode(), html.escape(self.words)
        width = round(96 * self.get_figwidth())
        size = f"width:100%;max-width:{width}px;min-width:{min(width, _READABLE)}px;height:auto"
        image = f"<img class='mlh-figure' alt='{words}' src='data:image/png;base64,{content}' style='{size}'>"
        return {"text/html": f"{_DARK}<div style='overflow-x:auto'>{image}</div>", "image/png": content, "text/plain": self.words}

    def __repr__(self) -> str:
        return self.words


def styled(draw: Callable[..., Picture]) -> Callable[..., Picture]:
    """The figure that ``draw`` makes, in this style."""

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Picture:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


def _figure(columns: int, title: str, width: float = 10.0, height: float = 4.2) -> tuple[Picture, list[Any]]:
    figure = Picture(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


@styled
def data_figure(lengths: Mapping[str, Sequence[int]], limit: int, supervised: Mapping[str, int], total: Mapping[str, int]) -> Picture:
    """Lengths of the rows against the limit, and how much of each split is trained.

    Args:
        lengths: tokens of each row before any cut, per split.
        limit: ``max_seq_length`` in tokens.
        supervised: trained tokens per split.
        total: tokens per split.
    """
    figure, (left, right) = _figure(2, "What will be trained")
    shown = {name: values for name, values in lengths.items() if len(values)}
    longest = max((max(values) for values in shown.values()), default=0)
    colours = [{"train": BLUE, "valid": GREEN, "test": ORANGE}.get(name, GREY) for name in shown]
    left.hist(list(shown.values()), bins=30, range=(0, max(limit, longest)), stacked=True, label=list(shown), color=colours)
    left.axvline(limit, color=RED, linestyle="--", linewidth=2)
    left.annotate(f"max_seq_length\n{limit}", (limit, 1), xycoords=("data", "axes fraction"), xytext=(-6, -4), textcoords="offset points",
                  ha="right", va="top", color=RED_TEXT)  # fmt: skip
    left.set(title="Length of the rows", xlabel="length (tokens)", ylabel="rows")
    left.legend(loc="upper left")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    names = [name for name in total if total[name]]
    shares = [100 * supervised[name] / total[name] for name in names]
    right.barh(range(len(names)), shares, color=BLUE, label="trained")
    right.barh(range(len(names)), [100 - share for share in shares], left=shares, color="#cccccc", label="context")
    for index, share in enumerate(shares):
        right.text(share / 2, index, f"{share:.0f} %", va="center", ha="center", color="white", fontweight="bold")
    right.set_yticks(range(len(names)), [f"{name}\n{supervised[name]:,} of\n{total[name]:,}" for name in names])
    right.set(title="Tokens that the loss counts", xlabel="share of the tokens (%)", xlim=(0, 100))
    right.invert_yaxis()
    right.grid(axis="y", visible=False)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    rows = f"{sum(map(len, shown.values())):,} rows, the longest {longest:,} tokens, the limit {limit:,}"
    trained = ", ".join(f"{name} {share:.0f} %" for name, share in zip(names, shares, strict=True))
    figure.alt = f"What will be trained: {rows}; the loss counts of the tokens: {trained}"
    return figure


@styled
def loss_figure(rows: Sequence[Mapping[str, Any]], total_steps: int | None = None) -> Picture:
    """Loss, and learning rate with gradient norm, over the optimizer steps.

    Args:
        rows: lines of ``train_log.jsonl``; a line with ``eval_loss`` is a point of the validation loss.
        total_steps: where the horizontal axis ends.
    """
    figure, (left, right) = _figure(2, "Training")
    points = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    checked = [(row["step"], row["eval_loss"]) for row in rows if row.get("eval_loss") is not None]
    left.plot(*_columns(points), color=BLUE, marker="o" if len(points) < 40 else None, markersize=4, label="training rows")
    if checked:
        left.plot(
            *_columns(checked), color=ORANGE, marker="s", markersize=6, linestyle="--", linewidth=1.5, label="validation rows", zorder=3
        )
        step, loss = min(checked, key=lambda point: point[1])
        said = f"lowest: {loss:.3g} at step {step}"
        left.plot([step], [loss], color=RED, marker="o", markersize=13, fillstyle="none", linestyle="", label=said, zorder=4, clip_on=False)
    left.set(title="Loss on the trained tokens", xlabel="optimizer step", ylabel="loss (nats per token)")
    left.set_ylim(bottom=0)
    left.legend(loc="upper right")
    norms = [(row["step"], row["grad_norm"]) for row in rows if row.get("grad_norm") is not None]
    rates = [(row["step"], row["learning_rate"]) for row in rows if row.get("learning_rate") is not None]
    right.plot(*_columns(norms), color=GREEN, label="gradient norm")
    right.set(title="Gradient norm and learning rate", xlabel="optimizer step", ylabel="gradient norm (no unit)")
    twin = right.twinx()
    twin.plot(*_columns(rates), color=RED, linestyle=":", linewidth=2, label="learning rate")
    twin.set_ylabel("learning rate (per step)")
    twin.spines["right"].set_visible(True)
    twin.grid(False)
    twin.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    handles = [*right.get_lines(), *twin.get_lines()]
    right.legend(handles, [line.get_label() for line in handles], loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    for axes in (left, right):
        axes.set_xlim(0, total_steps if total_steps and total_steps > 0 else None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (right, twin):
        axes.set_ylim(bottom=0)
    figure.alt = _loss_words(points, checked)
    return figure


def _loss_words(points: Sequence[tuple[float, float]], checked: Sequence[tuple[float, float]]) -> str:
    if not points:
        return "Training: no step yet"
    (first, begin), (last, end) = points[0], points[-1]
    told = f"Training: the loss on the trained tokens went from {begin:.3g} at step {first} to {end:.3g} at step {last}"
    return told + (f"; on validation rows it is {checked[-1][1]:.3g}, at its lowest {min(y for _, y in checked):.3g}" if checked else "")


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


class LiveLoss:
    """Watches a training: step x of y, the time left and the newest loss in a line, and the loss figure below it.

    Both are updated in place, the figure at most once in ``seconds``. Where nobody watches a notebook (papermill, a terminal)
    the line is printed instead, now and then, and the figure is shown at the end.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self._drawn = self._said = 0.0
        self._handles: dict[str, Any] = {}

    def __call__(self, rows: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> None:
        line = progress_line(rows, now)
        if headless() or not _in_notebook():
            self._print(line, now)
        else:
            self._show("line", Line(line))
        due = time.monotonic() - self._drawn >= self.seconds and not headless()
        if rows and _in_notebook() and (due or now["over"]):
            self._draw(rows, now["of"])

    def _print(self, line: str, now: Mapping[str, Any]) -> None:
        if now["step"] <= 2 or now["over"] or time.monotonic() - self._said >= 5 * self.seconds:
            print(line, flush=True)
            self._said = time.monotonic()

    def _draw(self, rows: Sequence[Mapping[str, Any]], steps: int) -> None:
        figure = loss_figure(rows, steps)
        self._show("figure", figure)
        # Figures are cycles: left to Python, thirty of them would stand in the measured memory of the training.
        figure.clear()
        del figure
        gc.collect()
        self._drawn = time.monotonic()

    def _show(self, name: str, what: Any) -> None:
        from IPython.display import display

        if name in self._handles:
            self._handles[name].update(what)
        else:
            self._handles[name] = display(what, display_id=True)


def progress_line(rows: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> str:
    """How far a training is, in words: ``step 37 of 200 · 12 s left · loss 0.53 · validation 0.58``."""
    checked = [row["eval_loss"] for row in rows if row.get("eval_loss") is not None]
    left = now["seconds_left"]
    parts = [
        f"step {now['step']:,} of {now['of']:,}",
        "ended" if now["over"] else f"{duration(left)} left" if left is not None else "the time is known after the second step",
        f"loss {now['loss']:.3f}" if now["loss"] is not None else "",
        f"validation {checked[-1]:.3f}" if checked else "",
    ]
    return " · ".join(filter(None, parts))


def _in_notebook() -> bool:
    from IPython import get_ipython

    return get_ipython() is not None


@styled
def comparison_figure(metrics: Mapping[str, Any]) -> Picture:
    """Base against tuned on the held-out rows: the loss, and the share of right answers.

    Args:
        metrics: the content of ``eval/metrics.json``.
    """
    figure, (left, right) = _figure(2, f"Base against tuned on {metrics['examples']} held-out examples")
    names, colours = ("base", "tuned"), (PALE, BLUE)
    losses = [metrics[name]["loss"] for name in names]
    bars = left.bar(names, losses, color=colours, width=0.55)
    left.bar_label(bars, [f"{loss:.3f}\nperplexity {metrics[name]['perplexity']:.3g}" for name, loss in zip(names, losses, strict=True)])
    left.set(title="Loss on the expected answers (lower is better)", ylabel="loss (nats per token)")
    left.margins(y=0.25)
    scores = [key for key in ("exact_match", "valid_json", "token_f1", "stop_rate") if metrics["tuned"].get(key) is not None]
    for offset, name, colour in zip((-0.2, 0.2), names, colours, strict=True):
        values = [100 * metrics[name][key] for key in scores]
        right.bar_label(right.bar([i + offset for i in range(len(scores))], values, width=0.38, color=colour, label=name), fmt="%.0f")
    right.set_xticks(range(len(scores)), [key.replace("_", "\n") for key in scores])
    right.set(title="Answers (higher is better)", ylabel="share of the examples (%)", ylim=(0, 118))
    if scores:
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    else:
        right.text(0.5, 0.5, "plain text has no expected answers", ha="center", transform=right.transAxes)
    told = [f"{name} loss {metrics[name]['loss']:.3f}" for name in names]
    for key in scores:
        base, tuned = (f"{100 * metrics[name][key]:.0f} %" for name in names)
        told.append(f"{key.replace('_', ' ')} base {base}, tuned {tuned}")
    figure.alt = f"Base against tuned on {metrics['examples']} held-out examples: {'; '.join(told)}"
    return figure


@styled
def equivalence_figure(report: Mapping[str, Any]) -> Picture:
    """How far each exported artefact says what the adapter says.

    Args:
        report: the content of ``export/equivalence.json``.
    """
    items = [item for item in report["artefacts"] if item.get("greedy_agreement") is not None]
    words = {True: ("passed", BLUE), False: ("FAILED", RED), None: ("not checked", GREY)}
    bars = [(item["name"], item["greedy_agreement"], *words[item["passed"]]) for item in items]
    if control := report.get("control"):
        words = "PASSED: the check shows nothing" if control["passed"] else "differs, as it must"
        bars.append((control["name"], control["greedy_agreement"], words, GREY))
    figure, (axes,) = _figure(1, "Does the export still say what the adapter said?", height=1.6 + 0.4 * max(1, len(bars)))
    drawn = axes.barh([name for name, *_ in bars], [100 * share for _, share, *_ in bars], color=[colour for *_, colour in bars])
    axes.bar_label(drawn, [f"{100 * share:.0f} %  {words}" for _, share, words, _ in bars], padding=4)
    axes.set(xlabel="tokens of the adapter's answers that are the first choice here too (%)", xlim=(0, 125), title="")
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    figure.alt = "Tokens of the adapter's answers that are the first choice here too: " + "; ".join(
        f"{name} {100 * share:.0f} %, {words}" for name, share, words, _ in bars
    )
    return figure


#: Hatching that tells the parts of the memory apart in grey print, one for each.
_HATCHES = ("", "//", "", "..")


@styled
def memory_figure(metrics: Mapping[str, Any]) -> Picture:
    """A stacked bar of the forecast above a bar of the measurement.

    Args:
        metrics: the content of ``train_metrics.json``.
    """
    predicted, measured = metrics["predicted_memory_bytes"] or 0, metrics["peak_memory_bytes"]
    unit, scale = ("GB", 1e9) if max(predicted, measured) >= 1e9 else ("MB", 1e6)
    figure = Picture(figsize=(10, 3.2), layout="constrained")
    axes, start = figure.subplots(), 0.0
    for (name, count, colour), hatch in zip(shares(metrics["predicted_memory_parts"]), _HATCHES, strict=True):
        axes.barh("forecast", count / scale, left=start, color=colour, hatch=hatch, edgecolor="white", label=name, height=0.6)
        start += count / scale
    axes.barh("measured", measured / scale, color=GREY, height=0.6)
    texts = [f"{value / scale:.3g} {unit}" if value else "not counted" for value in (predicted, measured)]
    for name, value, text in zip(("forecast", "measured"), (predicted, measured), texts, strict=True):
        axes.annotate(f" {text}", (value / scale, name), va="center")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    told = f"measured is {measured / predicted:.0%} of the forecast" if predicted else "measured; this model's could not be forecast"
    axes.set(title=f"Peak memory: {told}", xlabel=f"peak memory of the training ({unit})")
    if predicted:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=4, fontsize=9)
    figure.alt = f"Peak memory of the training: forecast {texts[0]}, measured {texts[1]}"
    return figure
