"""The report as one HTML page that needs nothing else: style, drawings and figures are in it. All text is escaped."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mac_lora_helpers.files import portable
from mac_lora_helpers.suite.regress.bands import number
from mac_lora_helpers.suite.regress.drawing import curve, gauge, spark

#: Larger pictures are linked to and not taken into the page, bytes.
LARGEST_FIGURE = 400_000
#: Earlier reports in a trend, at most.
TREND = 30

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2327; --soft: #5b6770; --paper: #fff; --card: #f5f7f8; --rule: #d5dbdf;
  --good: #0f7b5f; --bad: #b3261e; --warn: #8a5300; --band: #bfdcd3; --line: #0b6aa8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e7ebee; --soft: #a3afb8; --paper: #14181b; --card: #1d2327; --rule: #39434a;
  --good: #5fd3ad; --bad: #ff9a8f; --warn: #f0b860; --band: #2c574a; --line: #7cc4f5 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; padding: 24px; max-width: 1280px }
h1 { font-size: 1.5rem; margin: 0 0 4px }
h2 { font-size: 1.15rem; margin: 32px 0 8px; padding-top: 12px; border-top: 1px solid var(--rule) }
p { margin: 4px 0 10px }
a { color: var(--line) }
.soft { color: var(--soft) } .good-text { color: var(--good) } .bad-text { color: var(--bad) } .warn-text { color: var(--warn) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--rule) }
th { color: var(--soft); font-weight: 600; white-space: nowrap }
td.figure { font-variant-numeric: tabular-nums; white-space: nowrap }
td.metric { min-width: 15em }
tr.red { background: color-mix(in srgb, var(--bad) 12%, transparent) }
.card { background: var(--card); border-left: 4px solid var(--bad); border-radius: 4px; padding: 12px 16px; margin: 16px 0 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: 10px; border-radius: 4px; margin: 8px 0 }
code { font-family: ui-monospace, monospace; font-size: .92em }
svg .band { fill: var(--band) } svg .axis { stroke: var(--rule) } svg .bad { fill: var(--bad) }
svg .good, svg .dot { fill: var(--good) }
svg .line { stroke: var(--line); fill: none; stroke-width: 2 }
svg text { fill: var(--soft); font-size: 11px }
figure { margin: 8px 16px 8px 0; display: inline-block; vertical-align: top }
figcaption { color: var(--soft); font-size: .85em; max-width: 32em }
img { max-width: min(560px, 100%); height: auto; background: #fff; border-radius: 4px }
summary { cursor: pointer; margin: 6px 0 }
"""


def html_page(report: dict[str, Any], folder: Path, past: Sequence[dict[str, Any]]) -> str:
    """The page.

    Args:
        report: from ``report.make``. folder: the report folder, which links are relative to.
        past: earlier reports, oldest first; from ``report.past``.
    """
    body = [_head(report, len(past)), _first(report["first_failure"]), _overview(report["cases"])]
    body += [_case(case, folder, list(past)[-TREND:]) for case in report["cases"]]
    title = f"Regression run: {report['status']}"
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )
    return portable(text)


def _e(value: Any) -> str:
    return html.escape(str(value))


def _word(passed: bool, good: str = "✓ within", bad: str = "✗ out of band") -> str:
    return f'<strong class="{"good" if passed else "bad"}-text">{good if passed else bad}</strong>'


def _head(report: dict[str, Any], earlier: int) -> str:
    counts, conditions = report["counts"], report["conditions"]
    told = f"{counts['green']} of {counts['cases']} cases green, {counts['within']} of {counts['metrics']} figures within their bands"
    versions = ", ".join(f"{name} {value}" for name, value in conditions.items())
    trend = f"{earlier} earlier reports in the trends" if earlier else "no earlier report found for a trend"
    return (
        f"<h1>Regression run: {_word(report['status'] == 'passed', '✓ passed', '✗ failed')}</h1><p>{_e(told)}.</p>"
        f'<p class="soft">Begun {_e(report["began"])}, done {_e(report["made"])}; {_e(trend)}.<br>{_e(versions)}</p>'
    )


def _first(failure: dict[str, Any] | None) -> str:
    if failure is None:
        return ""
    if "metric" in failure:
        told = f"{number(failure['baseline'])} → {number(failure['got'])}, band {failure['band']}"
        text = (
            f"<p><code>{_e(failure['metric'])}</code> ({_e(failure['about'])}): {_e(told)}</p><p class='soft'>{_e(failure['reason'])}</p>"
        )
    else:
        text = f"<pre>{_e(failure.get('message') or 'no baseline: ' + ', '.join(failure['metrics']))}</pre>"
    look = f"<p>Look at {_link(failure['file'])}.</p>" if "file" in failure else ""
    link = f'<a href="#{_anchor(failure["case"])}">{_e(failure["case"])}</a>'
    return f'<div class="card"><strong>Look first at {link}: {_e(failure["status"])}</strong>{text}{look}</div>'


def _overview(cases: Sequence[dict[str, Any]]) -> str:
    rows = []
    for case in cases:
        red = sum(not row["passed"] for row in case["metrics"])
        result = _word(case["passed"], "✓ green", f"✗ {_e(case['status'] if case['status'] != 'passed' else 'red')}")
        link = f'<a href="#{_anchor(case["name"])}">{_e(case["name"])}</a>'
        figures = f"{len(case['metrics']) - red} of {len(case['metrics'])}"
        cells = f"<td>{link}</td><td>{result}</td><td class='figure'>{figures}</td><td class='figure'>{case['seconds']:.0f} s</td>"
        rows.append(f"<tr>{cells}<td>{_e(case['about'])}</td></tr>")
    return _grid(("case", "result", "within", "took", "about"), rows)


def _grid(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _anchor(name: str) -> str:
    return quote(f"case-{name}", safe="")


def _link(path: str, text: str = "") -> str:
    return f'<a href="{_e(quote(path))}">{_e(text or path)}</a>'


def _case(case: dict[str, Any], folder: Path, past: Sequence[dict[str, Any]]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in case["parameters"].items())
    links = " · ".join(_link(path, Path(path).stem) for path in case["notebooks"])
    parts = [f'<h2 id="{_anchor(case["name"])}">{_e(case["name"])} {_word(case["passed"], "✓ green", "✗ not green")}</h2>']
    parts.append(f"<p>{_e(case['about'])}<br><span class='soft'>{_e(values)}</span>{'<br>Executed: ' + links if links else ''}</p>")
    parts += [f"<pre>{_e(case['message'])}</pre>"] if case["message"] else []
    parts += [f"<p class='warn-text'>No baseline yet: {_e(', '.join(case['new']))}</p>"] if case["new"] else []
    parts += [_figures(case, folder)]
    rows = sorted(case["metrics"], key=lambda row: row["passed"])
    heads = ("metric", "baseline", "got", "band", "trend", "why so wide")
    parts += [_grid(heads, [_row(case["name"], row, past) for row in rows])] if rows else []
    return "".join(parts)


def _figures(case: dict[str, Any], folder: Path) -> str:
    parts = [curve(_log(folder / f"cases/{case['name']}/run/train_log.jsonl"), "step", "loss (nats per token)")]
    pictures = [_picture(folder / path, path) for path in case["figures"]]
    if pictures:
        told = f"{len(pictures)} {'figure' if len(pictures) == 1 else 'figures'} of the run"
        parts.append(f"<details><summary>{told}</summary>{''.join(pictures)}</details>")
    return "".join(parts)


def _log(file: Path) -> list[tuple[float, float]]:
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [(row["step"], row["loss"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _picture(file: Path, path: str) -> str:
    try:
        content = file.read_bytes()
    except OSError:
        return ""
    if len(content) > LARGEST_FIGURE:
        return f"<p>{_link(path)}</p>"
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    image = f'<img src="{source}" alt="{_e(Path(path).name)} of this run" loading="lazy">'
    return f"<figure>{image}<figcaption>{_link(path)}</figcaption></figure>"


def _row(case: str, row: dict[str, Any], past: Sequence[dict[str, Any]]) -> str:
    earlier = [
        next((old["got"] for old in report["cases"].get(case, {}).get("metrics", []) if old.get("metric") == row["metric"]), None)
        for report in past
    ]
    name = _e(row["metric"]).replace(".", ".<wbr>").replace("_", "_<wbr>")
    drawn = gauge(row["low"], row["high"], row["got"], row["baseline"], row["passed"])
    cells = [
        f"<td class='metric'><code>{name}</code><br><span class='soft'>{_e(row['about'])}</span></td>",
        f"<td class='figure' title='{_e(row['baseline'])}'>{_e(number(row['baseline']))}</td>",
        f"<td class='figure' title='{_e(row['got'])}'>{_e(number(row['got']))}</td>",
        f"<td>{_word(row['passed'])}<br>{_e(row['kind'])}: {_e(row['band'])}{'<br>' + drawn if drawn else ''}</td>",
        f"<td>{spark([*earlier, row['got']])}</td>",
        f"<td class='soft'>{_e(row['reason'])}</td>",
    ]
    return f"<tr{'' if row['passed'] else ' class=red'}>{''.join(cells)}</tr>"
