"""Memory and time of presets, as the tab "Train" shows them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from stages.preparation.all_stages import ALL_PRESETS, TITLES, AllStages
from stages.preparation.costs import StageCost, describe_estimate, fits, stage_costs
from training.logging.progress import format_duration
from training.memory import format_bytes


def chosen_costs(stages: AllStages, runs: Path) -> str:
    """Return what each stage of a training costs, as HTML."""
    costs = list(stage_costs(stages, runs))
    words = [
        f"<span>{TITLES[cost.script]}: <b>{format_bytes(cost.memory)}</b>, "
        f"<b>{format_duration(cost.seconds)}</b> ({escape(cost.source)})</span>"
        for cost in costs
    ]
    words.append(f"<span>together <b>{format_duration(seconds_of(costs))}</b></span>")
    text = f"<div class='run-facts'>{''.join(words)}</div>{warning_of(stages, costs)}"
    if any(cost.run is None for cost in costs):
        text += f"<div class='note'>{escape(describe_estimate(stages))}</div>"
    return text


def all_costs(stages: AllStages, runs: Path) -> Iterator[str]:
    """Yield a table of all presets as HTML, with one row more each time."""
    head = "".join(f"<th>{title}</th>" for title in ("Preset", "Pixels", "Memory", "Time"))
    rows: list[str] = []
    for preset in ALL_PRESETS:
        # Steps and images per step of the form are those of one preset.
        other = replace(stages, preset=preset, steps={}, batch_size={})
        costs = list(stage_costs(other, runs))
        rows.append(row_of(preset, other, costs))
        waits = "" if preset == ALL_PRESETS[-1] else "<div class='note'>and more ...</div>"
        yield (
            f"<table class='run-list'><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>{waits}"
        )


def row_of(preset: str, stages: AllStages, costs: Sequence[StageCost]) -> str:
    """Return the row of a preset: the most memory of a stage, and the time of all."""
    size = next((cost.size for cost in reversed(costs) if cost.size), "")
    source = "estimated" if any(cost.run is None for cost in costs) else "measured"
    parts = ", ".join(f"{TITLES[c.script]} {format_duration(c.seconds)}" for c in costs)
    return (
        f"<tr><td><b>{preset}</b></td><td>{size}</td>"
        f"<td>{format_bytes(max(cost.memory for cost in costs))}{warning_of(stages, costs)}</td>"
        f"<td>{format_duration(seconds_of(costs))} <small>{source}: {parts}</small></td></tr>"
    )


def seconds_of(costs: Sequence[StageCost]) -> float:
    return sum(cost.seconds for cost in costs)


def warning_of(stages: AllStages, costs: Sequence[StageCost]) -> str:
    if all(fits(stages, cost.memory) for cost in costs):
        return ""
    return "<div class='verdict bad'>more than this machine has</div>"
