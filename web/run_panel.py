"""The panel of a run: how far it is, its verdicts, its curves, and its previews step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from foundation.errors import one_line
from training.logging.progress import format_duration
from training.tools.curves import line_chart
from training.tools.previews import step_of, step_section
from training.tools.report_page import group_metrics, is_warning, shown_metrics
from training.tools.run_list import RunSummary, compared_metrics, metrics_of, preview_files
from web.studio import FILLS, PRIVATE, with_messages

SPEED = "images_per_second"  # shown as a number
STYLE = """
.run-charts { display: grid; gap: 10px;
              grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); }
.run-charts svg { width: 100%; height: auto; border-radius: 6px;
                  border: 1px solid var(--border-color-primary); }
.dark .run-charts svg line[stroke="#444"] { stroke: #a3a8ae; }
.run-charts svg text { font-size: 15px; }
.dark .run-charts :is(polyline, circle, line[stroke-width="3"]) { filter: brightness(1.6); }
.run-bar { height: 8px; border-radius: 4px; background: var(--border-color-primary);
           overflow: hidden; margin: 6px 0; }
.run-bar > div { height: 100%; background: var(--color-accent); }
.run-facts { display: flex; flex-wrap: wrap; gap: 4px 18px; }
.run-facts b { font-weight: 600; }
.verdict { margin: 4px 0; padding: 4px 10px; border-left: 3px solid #2b8f3e; }
.verdict.bad { border-left-color: #d9601a; }
.badge { display: inline-block; padding: 1px 9px; border-radius: 9px; font-size: 0.85em;
         color: #fff; background: #6b7280; white-space: nowrap; }
.badge.running, .badge.starting { background: #1f6fb4; } .badge.finished { background: #2b8f3e; }
.badge.waiting, .badge.stopping { background: #8a6d1c; } .badge.failed { background: #b91c1c; }
.run-list { width: 100%; border-collapse: collapse; }
.run-list, .run-list tr { border: 0 !important; }
.run-list td, .run-list th { padding: 5px 12px 5px 0; text-align: left; vertical-align: top;
                             border-width: 0 0 1px !important;
                             border-color: var(--border-color-primary) !important; }
.run-list td { overflow-wrap: anywhere; } .run-list small { opacity: 0.75; }
@media (min-width: 601px) {
  .run-list td:nth-child(1), .run-list td:nth-child(3) { overflow-wrap: normal; }
  .run-list td:nth-child(4) { white-space: nowrap; }
}
@media (max-width: 600px) {
  .run-list thead { display: none; }
  .run-list tr { display: block; padding: 6px 0;
                 border: solid var(--border-color-primary) !important;
                 border-width: 0 0 1px !important; }
  .run-list td { display: inline-block; border: 0 !important; padding: 1px 10px 1px 0; }
}
.run-previews .previews { display: flex; flex-wrap: wrap; gap: 14px; }
.run-previews p { margin: 2px 0 8px; opacity: 0.8; }
.run-previews figure { margin: 0; display: table; max-width: 100%; }
.run-previews figure img { display: inline; max-width: 100%; height: auto; margin: 0 3px 0 0;
                           image-rendering: pixelated; }
.run-previews figcaption { display: table-caption; caption-side: bottom; font-size: 13px;
                           overflow-wrap: anywhere; opacity: 0.85; margin: 0; }
.note { font-size: 13px; opacity: 0.85; margin: 4px 0; }
.cell { text-align: center; font-size: 12px; overflow-wrap: anywhere; }
.cell img { width: 100%; height: 130px; object-fit: contain; border-radius: 6px; }
.cell .empty { height: 130px; display: flex; align-items: center; justify-content: center;
               padding: 6px; border-radius: 6px; border: 1px dashed #b91c1c; }
.cell .mark { color: #b45309; font-weight: 600; } .dark .cell .mark { color: #fbbf24; }
.cell .mark.bad { color: #b91c1c; } .dark .cell .mark.bad { color: #ff8a80; }
.report pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12.5px; }
"""


@dataclass
class RunPanel:
    """The fields of the panel. It has no state of its own: a run is read whenever it is shown."""

    def build(self) -> None:
        """Make the fields where the page is being made."""
        self.facts = gr.HTML()
        self.charts = gr.HTML()
        with gr.Column(visible=False) as self.previews:
            with gr.Row():
                self.back = gr.Button("◀ Earlier step", size="sm", min_width=90)
                self.place = gr.Slider(
                    1, 2, 1, step=1, label="Preview", buttons=[], scale=3, min_width=140
                )
                self.forth = gr.Button("Later step ▶", size="sm", min_width=90)
            self.pictures = gr.HTML(elem_classes="run-previews")
        self.files = gr.State([])  # of the previews that the slider counts

    @property
    def outputs(self) -> list[Any]:
        """The fields that `show` fills."""
        return [self.facts, self.charts, self.previews, self.place, self.pictures, self.files]

    def connect(self) -> None:
        """Let the buttons and the slider choose a preview."""
        for button, step in ((self.back, -1), (self.forth, 1)):
            button.click(
                lambda place, files, step=step: min(max(place + step, 1), max(len(files), 1)),
                [self.place, self.files],
                self.place,
                queue=False,
                **PRIVATE,
            )
        shown = [self.place, self.files]
        self.place.change(with_messages(open_preview), shown, self.pictures, **FILLS)


def show_runs(
    runs: Sequence[RunSummary], before: Sequence[str], place: int = 0, facts: str = ""
) -> tuple[Any, ...]:
    """Return what the panel shows of a run, or of several that are compared.

    Args:
        before: the previews that are shown now.
        place: which of them, counted from 1. Who looks at the last one is shown a newer one.
        facts: HTML in place of that of the run.
    """
    if len(runs) != 1:
        charts = compare(runs) if runs else ""
        return facts, charts, gr.Column(visible=False), gr.skip(), "", []
    run = runs[0]
    files = [str(file) for file in preview_files(run.path)]
    shown = facts or facts_of(run)
    if files == list(before):
        return shown, charts_of(run), gr.skip(), gr.skip(), gr.skip(), gr.skip()
    follows = place >= len(before) or files[: len(before)] != list(before)
    chosen = len(files) if follows else place
    slider = gr.Slider(maximum=max(len(files), 2), value=max(chosen, 1), visible=len(files) > 1)
    pictures = open_preview(chosen, files)
    return shown, charts_of(run), gr.Column(visible=bool(files)), slider, pictures, files


def open_preview(place: float, files: Sequence[str]) -> str:
    """Return HTML of the preview of this place, counted from 1: each picture with its prompt."""
    if not 1 <= place <= len(files):
        return ""
    file = Path(files[int(place) - 1])
    return f"<div><b>Step {step_of(file):,}</b></div>{step_section(file)}"


def facts_of(run: RunSummary) -> str:
    """Return HTML that says how far a run is, and its verdicts."""
    bar = f"<div class='run-bar'><div style='width:{percent(run):.1f}%'></div></div>"
    return (
        f"<div><b>{escape(one_line(run.name))}</b> {badge(run.state)} {escape(run.kind)}</div>"
        f"{bar}<div class='run-facts'>{numbers_of(run)}</div>{verdicts_of(run)}"
    )


def badge(state: str) -> str:
    return f"<span class='badge {escape(state)}'>{escape(state)}</span>"


def percent(run: RunSummary) -> float:
    if run.state == "finished":
        return 100.0
    return 100 * min(run.step / run.plan.steps, 1) if run.plan.steps else 0.0


def numbers_of(run: RunSummary) -> str:
    """Return the steps, the speed and the time left of a run, as HTML."""
    words = [f"<span>step <b>{run.step:,}</b> of {run.plan.steps:,}</span>"]
    if run.rate is not None:
        words.append(f"<span><b>{run.rate:.3g}</b> images per second</span>")
    if run.state == "running" and run.seconds_left is not None:
        words.append(f"<span><b>{format_duration(run.seconds_left)}</b> left</span>")
    if run.plan.preset:
        words.append(f"<span>preset {escape(one_line(run.plan.preset))}</span>")
    return "".join(words)


def verdicts_of(run: RunSummary) -> str:
    return "".join(
        f"<div class='verdict{' bad' if is_warning(text) else ''}'>step {step:,}: "
        f"{escape(one_line(text))}</div>"
        for step, text in run.verdicts
    )


def charts_of(run: RunSummary) -> str:
    """Return the curves of a run as HTML, losses first."""
    metrics = shown_metrics(metrics_of(run.path))
    speed = metrics.pop(SPEED, None)
    groups = group_metrics(metrics)
    groups.sort(key=lambda group: "loss" not in group[0] and "psnr" not in group[0])
    if speed is not None:
        groups.append(("images per second", {SPEED: speed}))
    return charts(groups)


def compare(runs: Sequence[RunSummary]) -> str:
    """Return the curves of several runs as HTML, those of a metric in one chart."""
    groups = compared_metrics({one_line(run.name): run.path for run in runs})
    if not groups:
        return "<p>These runs have no metric in common.</p>"
    return charts([(title.replace("_", " "), lines) for title, lines in groups])


def charts(groups: Sequence[tuple[str, Any]]) -> str:
    drawn = [line_chart(title.replace("_", " "), lines, x_label="step") for title, lines in groups]
    return f"<div class='run-charts'>{''.join(drawn)}</div>" if drawn else ""
