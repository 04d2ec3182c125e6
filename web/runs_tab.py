"""The tab "Runs": all runs in a folder, and their curves compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from foundation.errors import UserError, one_line, shown
from training.tools.background import stop_training
from training.tools.curves import COLORS
from training.tools.report_page import is_warning
from training.tools.run_list import RunSummary, summarize_runs
from web.run_panel import RunPanel, badge, show_runs
from web.studio import FILLS, Studio, with_messages


@dataclass
class RunsTab:
    """The fields of the tab, and what happens when they are used."""

    studio: Studio
    model: gr.Dropdown

    def build(self, tab: gr.Tab, tabs: gr.Tabs) -> None:
        """Make the fields and connect them."""
        self.list = gr.HTML(elem_id="run-list")
        with gr.Row():
            self.chosen = gr.Dropdown(
                [],
                multiselect=True,
                max_choices=len(COLORS),
                label="Look at a run, or compare several",
                scale=4,
                min_width=220,
            )
            self.again = gr.Button("Look again", size="sm", min_width=90)
            self.draw = gr.Button("Draw with it", size="sm", min_width=90)
            self.stop = gr.Button("Stop it", size="sm", min_width=90)
        self.panel = RunPanel()
        self.panel.build()
        self.panel.connect()
        panel = self.panel
        inputs = [self.chosen, panel.files, panel.place]
        for event in (tab.select, self.again.click):
            event(
                with_messages(self.refresh),
                inputs,
                [self.list, self.chosen, *panel.outputs],
                **FILLS,
            )
        self.chosen.change(with_messages(self.show), inputs, panel.outputs, **FILLS)
        self.draw.click(with_messages(self.draw_with), self.chosen, [self.model, tabs], **FILLS)
        self.stop.click(with_messages(self.stop_run), self.chosen, None, **FILLS)

    def runs(self) -> dict[str, RunSummary]:
        return {run.name: run for run in summarize_runs(self.studio.models.runs)}

    def refresh(self, chosen: Sequence[str], *shown_now: Any) -> tuple[Any, ...]:
        """Return the list of runs, the names to choose from, and the panel."""
        runs = self.runs()
        kept = [name for name in chosen or () if name in runs] or list(runs)[:1]
        labels = [
            (f"{one_line(name)} ({run.kind}, {run.state})", name) for name, run in runs.items()
        ]
        dropdown = gr.Dropdown(labels, value=kept)
        panel = show_runs([runs[name] for name in kept], *shown_now)
        return list_of(list(runs.values())), dropdown, *panel

    def show(self, chosen: Sequence[str], *shown_now: Any) -> tuple[Any, ...]:
        """Return what the panel shows of the runs that are chosen."""
        runs = self.runs()
        return show_runs([runs[name] for name in chosen or () if name in runs], *shown_now)

    def only(self, chosen: Sequence[str]) -> RunSummary:
        """Return the run that is chosen.

        Raises:
            UserError: there are none or several.
        """
        runs = self.runs()
        if len(chosen or ()) != 1 or chosen[0] not in runs:
            raise UserError("choose one run first.")
        return runs[chosen[0]]

    def draw_with(self, chosen: Sequence[str]) -> tuple[Any, ...]:
        """Go to the tab "Draw" with the model of the run that is chosen."""
        return choose_model(self.studio, self.only(chosen).path.as_posix())

    def stop_run(self, chosen: Sequence[str]) -> None:
        """Ask the training of the run that is chosen to save its state and end."""
        stop_training(self.only(chosen).path)
        gr.Info("It ends after its step, and saves its state first.")


def choose_model(studio: Studio, name: str) -> tuple[Any, ...]:
    """Return the list of models with this one chosen, and the tab "Draw".

    Raises:
        UserError: it does not draw, or is not finished.
    """
    names = studio.models.names()
    if name not in names:
        raise UserError(
            f"{shown(name)} holds no model that draws: it is a run of another stage, or it is not "
            "finished."
        )
    studio.models.forget(name)
    return gr.Dropdown(names, value=name), gr.Tabs(selected="draw")


def list_of(runs: Sequence[RunSummary]) -> str:
    """Return a table of runs as HTML."""
    if not runs:
        return "<p>There is no run yet. The tab Train begins one.</p>"
    rows = "".join(row_of(run) for run in runs)
    head = "".join(f"<th>{title}</th>" for title in ("Run", "State", "Kind", "Step", "Verdict"))
    return f"<table class='run-list'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def row_of(run: RunSummary) -> str:
    """Return the row of a run: a warning is its verdict, else the newest one."""
    texts = [text for _, text in run.verdicts]
    verdict = next(filter(is_warning, texts), texts[0] if texts else "")
    mark = " class='verdict bad'" if is_warning(verdict) else ""
    steps = f"{run.step:,} / {run.plan.steps:,}"
    return (
        f"<tr><td><b>{escape(one_line(run.name))}</b></td><td>{badge(run.state)}</td>"
        f"<td>{escape(run.kind)}</td><td>{steps}</td>"
        f"<td><small{mark}>{escape(one_line(verdict))}</small></td></tr>"
    )
