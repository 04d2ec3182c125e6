"""The tab "Train": from a folder of images to a model that draws."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from foundation.errors import UserError, one_line
from stages.preparation.all_stages import ALL_PRESETS, FOLDERS, TITLES, AllStages
from stages.preparation.start import start_all_stages
from training.tools.background import (
    check_run_name,
    reason_of_failure,
    start_sequence,
    stop_training,
)
from training.tools.run_folders import find_running
from training.tools.run_list import summarize_run
from training.tools.sequence import find_sequences, read_commands, read_state
from web.data_access import AllowedFolders, read_view
from web.data_panel import DataPanel
from web.option_form import for_the_page
from web.run_panel import RunPanel, badge, show_runs
from web.runs_tab import choose_model
from web.studio import FILLS, PRIVATE, Studio, streamed_with_messages, with_messages
from web.training.kinds import CONDITIONS, TASKS, condition_of, describe_kind, task_of
from web.training.preset_costs import all_costs, chosen_costs

INTERVAL = 3.0  # seconds between looks at a training
# Networks are counted one after the other, and only the last choice matters.
COSTS: dict[str, Any] = {
    "concurrency_id": "costs",
    "concurrency_limit": 1,
    "trigger_mode": "always_last",
    "show_progress": "minimal",
    **PRIVATE,
}


@dataclass
class TrainTab:
    """The fields of the tab, and what happens when they are used."""

    studio: Studio
    model: gr.Dropdown

    def build(self, tab: gr.Tab, tabs: gr.Tabs) -> None:
        """Make the fields and connect them."""
        self.folders = AllowedFolders(self.studio.data)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                gr.Markdown("### 1. Images and captions")
                self.data = DataPanel(self.folders)
                self.data.build()
            with gr.Column(scale=2, min_width=320):
                gr.Markdown("### 2. Training")
                self.build_form()
        gr.Markdown("### 3. Progress")
        with gr.Row():
            self.training = gr.Dropdown([], label="Training", scale=4, min_width=200)
            self.stop = gr.Button("Stop", size="sm", min_width=80)
            self.go_on = gr.Button("Go on", size="sm", min_width=80)
            self.draw = gr.Button("Draw with it", size="sm", variant="primary", min_width=110)
        self.listed = gr.State([])  # names in the list of trainings
        self.panel = RunPanel()
        self.panel.build()
        self.timer = gr.Timer(INTERVAL)
        self.connect(tab, tabs)

    def build_form(self) -> None:
        """Make the fields of a new training."""
        self.name = gr.Textbox(label="Name", placeholder="that of the data folder", max_length=60)
        with gr.Row():
            self.task = gr.Dropdown(list(TASKS), value=next(iter(TASKS)), label="The model")
            self.condition = gr.Dropdown(
                list(CONDITIONS), value=next(iter(CONDITIONS)), label="It reads"
            )
        self.kind = gr.HTML(describe_kind(next(iter(CONDITIONS)), next(iter(TASKS))))
        self.preset = gr.Dropdown(list(ALL_PRESETS), value="small-64", label="Preset")
        self.costs = gr.HTML(elem_id="costs")
        with gr.Accordion("Compare the presets", open=False) as self.compared:
            self.table = gr.HTML(elem_id="presets")
        with gr.Accordion("More options", open=False):
            self.numbers: dict[tuple[str, str], gr.Number] = {}
            for title, name in (("Steps", "steps"), ("Images per step", "batch_size")):
                with gr.Row():
                    for script, stage in TITLES.items():
                        label = f"{title}: {stage}"
                        self.numbers[name, script] = gr.Number(
                            None,
                            label=label,
                            precision=0,
                            placeholder="preset's",
                            min_width=90,
                        )
            with gr.Row():
                self.seed = gr.Number(0, label="Seed", precision=0, min_width=90)
                self.skip = gr.Checkbox(False, label="Leave out images that cannot be used")
        self.estimate = gr.Button("What does it need?")
        self.needs = gr.HTML()
        self.command = gr.Code(
            "# choose a data folder first",
            label="The same on the command line",
            language="shell",
            wrap_lines=True,
        )
        self.at_once = gr.Checkbox(False, label="Do not wait for other trainings")
        self.start = gr.Button("Start", variant="primary")

    @property
    def form(self) -> list[Any]:
        return [self.name, self.data.folder, *self.kinds]

    @property
    def kinds(self) -> list[Any]:
        """The fields that memory and time depend on."""
        chosen = [self.preset, self.condition, self.task, self.seed, self.skip]
        return [*chosen, *self.numbers.values()]

    def connect(self, tab: gr.Tab, tabs: gr.Tabs) -> None:
        self.data.connect(self.preset)
        self.panel.connect()
        for field in self.form:
            field.change(self.show_command, self.form, self.command, queue=False, **PRIVATE)
        kind = [self.condition, self.task]
        for field in kind:
            field.change(describe_kind, kind, self.kind, queue=False, **PRIVATE)
        changed = [field.change for field in (*kind, self.preset, *self.numbers.values())]
        costs, table = with_messages(self.show_costs), streamed_with_messages(self.compare)
        gr.on([tab.select, *changed], costs, self.kinds, self.costs, **COSTS)
        self.compared.expand(table, self.kinds, self.table, **COSTS)
        estimate = with_messages(self.show_needs)
        self.estimate.click(estimate, self.form, self.needs, **PRIVATE)
        outputs = [self.training, self.listed, *self.panel.outputs]
        watched = [self.training, self.listed, self.panel.files, self.panel.place]
        watch, begin = with_messages(self.watch), with_messages(self.begin)
        started = self.start.click(begin, [*self.form, self.at_once], self.training, **FILLS)
        for event in (started.success, tab.select, self.training.input, self.timer.tick):
            event(watch, watched, outputs, **FILLS)
        stop, go_on = with_messages(self.stop_training), with_messages(self.resume)
        self.stop.click(stop, self.training, None, **FILLS)
        self.go_on.click(go_on, [self.training, self.at_once], None, **FILLS)
        opened = [self.model, tabs]
        draw = with_messages(self.draw_with)
        self.draw.click(draw, self.training, opened, **FILLS)

    # A new training.

    def stages_of(self, name: str, folder: str | None, *kinds: Any) -> AllStages:
        """Return the training that the form describes.

        Raises:
            UserError: a field cannot be used.
        """
        data = self.folders.find(folder)
        out = self.studio.models.runs / check_run_name((name or "").strip() or data.name)
        return replace(self.kind_of(*kinds), data=data, out=out)

    def kind_of(
        self,
        preset: str,
        condition: str,
        task: str,
        seed: float | None,
        skip: bool,
        *numbers: float | None,
    ) -> AllStages:
        """Return the training that the form describes, with no data yet."""
        given: Mapping[str, dict[str, int]] = {"steps": {}, "batch_size": {}}
        for (field, script), number in zip(self.numbers, numbers, strict=True):
            if number:  # an empty field may come as 0
                given[field][script] = int(number)
        return AllStages(
            data=Path("data"),
            out=self.studio.models.runs / "new",
            preset=preset,
            condition=condition_of(condition),
            task=task_of(task),
            steps=given["steps"],
            batch_size=given["batch_size"],
            seed=int(seed or 0),
            device=self.studio.models.device.type,
            skip_unusable=bool(skip),
        )

    def show_costs(self, *kinds: Any) -> str:
        """Return the memory and the time of each stage, as HTML."""
        return chosen_costs(self.kind_of(*kinds), self.studio.models.runs)

    def compare(self, *kinds: Any) -> Iterator[str]:
        """Yield a table of the presets with memory and time, as HTML."""
        yield from all_costs(self.kind_of(*kinds), self.studio.models.runs)

    def show_command(self, *form: Any) -> str:
        """Return the commands that do the same as the form, or what it lacks."""
        try:
            commands = self.stages_of(*form).commands()
        except UserError as error:
            return f"# {for_the_page(error)}"
        return "\n".join(shlex.join(["python", *command]) for command in commands)

    def show_needs(self, *form: Any) -> str:
        """Return what the training needs, and what would stop it, as HTML."""
        stages = self.stages_of(*form)
        folder = read_view(stages.data).folder
        problems = [for_the_page(problem) for problem in stages.problems(folder)]
        if problems:
            shown = "".join(f"<div class='verdict bad'>{escape(text)}</div>" for text in problems)
            return f"<div class='report'>{shown}</div>"
        needs = stages.describe(folder, self.studio.models.runs)
        return f"<div class='report'><pre>{escape(for_the_page(needs))}</pre></div>"

    def begin(self, *form: Any) -> Any:
        """Start the training of the form; return the list of trainings with it chosen."""
        *fields, at_once = form
        stages = self.stages_of(*fields)
        others = find_running(self.studio.models.runs)
        start_all_stages(stages, bool(at_once))
        if others and not at_once:
            gr.Info("Another training runs, so this one waits for its end.")
        return gr.Dropdown(self.names(), value=stages.out.name)

    # Trainings that are there.

    def names(self) -> list[str]:
        """List the trainings: those that run first, then the newest."""
        found = [(read_state(folder), folder) for folder in find_sequences(self.studio.models.runs)]
        found.sort(key=lambda one: (not one[0].is_active, -one[0].began, one[1].name))
        return [folder.name for _, folder in found]

    def find(self, name: str | None) -> Path:
        """Return the folder of a training of the list.

        Raises:
            UserError: there is none of this name.
        """
        for folder in find_sequences(self.studio.models.runs):
            if folder.name == name:
                return folder
        raise UserError("no training is chosen. Choose one of the list, or start one.")

    def watch(
        self, name: str | None, listed: Sequence[str], files: Sequence[str], place: int
    ) -> tuple[Any, ...]:
        """Return the list of trainings, and how far the one that is chosen is."""
        names = self.names()
        is_same = name in names and names == list(listed)  # then a list that is open stays so
        name = name if name in names else next(iter(names), None)
        dropdown = gr.skip() if is_same else gr.Dropdown(names, value=name)
        if name is None:
            return dropdown, names, *show_runs([], files, place, "There is no training yet.")
        folder = self.find(name)
        runs, state = self.studio.models.runs, read_state(folder)
        scripts = [command[0] for command in read_commands(folder)]
        script = scripts[min(state.stage, len(scripts) - 1)]
        run = folder / FOLDERS[script]
        head = self.head_of(folder, scripts)
        if not (run / "config.json").is_file():
            return dropdown, names, *show_runs([], files, place, head)
        found = summarize_run(run, runs)
        panel = show_runs([found], files, place)
        return dropdown, names, head + panel[0], *panel[1:]

    def head_of(self, folder: Path, scripts: Sequence[str]) -> str:
        """Return HTML that says which stage runs, and why none does."""
        state = read_state(folder)
        words = [f"<b>{escape(one_line(folder.name))}</b> {badge(state.name)}"]
        if state.waits_for:
            words.append(f"waits for the end of {escape(one_line(state.waits_for))}")
        elif state.is_active:
            script = scripts[min(state.stage, len(scripts) - 1)]
            words.append(f"stage {state.stage + 1} of {len(scripts)}: {TITLES[script]}")
        text = f"<div class='run-facts'>{''.join(f'<span>{word}</span>' for word in words)}</div>"
        if state.name == "failed":
            reason = escape(for_the_page(reason_of_failure(folder)))
            text += f"<div class='verdict bad'>{reason}</div>"
        return text

    def stop_training(self, name: str | None) -> None:
        """Ask the training to save its state and end."""
        stop_training(self.find(name))
        gr.Info("It ends after its step, and saves its state first.")

    def resume(self, name: str | None, at_once: bool) -> None:
        """Go on with a training that was stopped."""
        start_sequence(self.find(name), bool(at_once))
        gr.Info("It goes on where it was.")

    def draw_with(self, name: str | None) -> tuple[Any, ...]:
        """Go to the tab "Draw" with the model of the training."""
        folder = self.find(name)
        return choose_model(self.studio, (folder / FOLDERS["train_ldm.py"]).as_posix())
