"""Run folders: starting, resuming, starting from weights, changing a flag, and what is refused."""

import json
import re

import pytest
import torch

import train_vae
from autoencoder import Autoencoder
from foundation.errors import UserError
from tests.helpers.bad_calls import CONFIGS, command, refusal, unchanged
from tests.helpers.toy_training import Toy
from training.cli import parse
from training.run import Run


def history(run) -> list[tuple[int, str]]:
    lines = map(json.loads, (run / "history.jsonl").read_text().splitlines())
    return [(line["step"], line["event"]) for line in lines]


def train(world, out, capsys, *flags) -> str:
    """Train stage 1, and return what it printed."""
    capsys.readouterr()
    train_vae.main(command(train_vae, world, out, "--held-out", 0, *flags))
    return capsys.readouterr().out


def test_output_and_history_say_how_a_run_began(world, tmp_path, capsys):
    run, again = tmp_path / "run", ("--save-every", 1)
    assert f"{run}, begun with random weights" in train(world, run, capsys, *again)
    (run / "history.jsonl").write_text((run / "history.jsonl").read_text().split("\n")[0] + "\n")
    text = train(world, run, capsys, *again)
    assert f"resuming {run} at step 2." in text and "begun" not in text
    steps = [(0, "begun with random weights"), (2, "resumed from step-0000002"), (2, "finished")]
    assert history(run) == steps
    assert f"{run} is finished: 2 steps" in train(world, run, capsys, *again)
    assert history(run) == steps


def test_initial_weights_are_not_a_state_to_resume(world, tmp_path, capsys):
    given = ("--init-from", world / "vae")
    text = train(world, tmp_path, capsys, *given)
    event = f"begun with the weights of {world / 'vae'}"
    assert f"{tmp_path}, {event}." in text
    assert history(tmp_path)[0] == (0, event)
    (tmp_path / "history.jsonl").unlink()
    text = train(world, tmp_path, capsys, *given)
    assert f"resuming {tmp_path} at step 2; {world / 'vae'} was read" in text


def test_a_flag_is_changed_only_by_override(world, tmp_path, capsys):
    train(world, tmp_path, capsys)
    other = ("--steps", 3, "--learning-rate", 0.01)
    with unchanged(tmp_path):
        given = command(train_vae, world, tmp_path, "--held-out", 0, *other)
        message = refusal(capsys, train_vae, given)
    assert "steps: 2 -> 3" in message and "0.003 -> 0.01" in message
    assert "--override learning-rate=0.01 steps=3 at its end" in message
    with unchanged(tmp_path):
        named = ("--learning-rate", 0.01, "--override", "steps=3")
        given = command(train_vae, world, tmp_path, "--held-out", 0, *named)
        message = refusal(capsys, train_vae, given)
    assert "0.003 -> 0.01" in message and "steps" not in message


def test_an_override_takes_effect_and_is_recorded(world, tmp_path, capsys):
    train(world, tmp_path, capsys)
    flags = ("--override", "steps=4", "loss.kl-weight=1e-4", "skip_unusable=true")
    text = train(world, tmp_path, capsys, *flags)
    assert f"resuming {tmp_path} at step 2." in text
    changes = ["loss.kl_weight: 1e-06 -> 0.0001", "skip_unusable: False -> True", "steps: 2 -> 4"]
    assert f"changed from step 2 on: {'; '.join(changes)}" in text
    assert history(tmp_path)[-2:] == [
        (2, f"resumed from step-0000002, changed: {'; '.join(changes)}"),
        (4, "finished"),
    ]
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["steps"], config["loss"]["kl_weight"]) == (4, 1e-4)
    assert config["overrides"] == [{"step": 2, "flags": changes}]
    facts = json.loads((tmp_path / "model" / "latentsmith.json").read_text())
    assert facts["config"]["overrides"] == config["overrides"]

    with unchanged(tmp_path):  # the same command again, and the flags as they now are
        assert "is finished: 4 steps" in train(world, tmp_path, capsys, *flags)
        plain = ("--steps", 4, "--kl-weight", "1e-4", "--skip-unusable")
        assert "is finished: 4 steps" in train(world, tmp_path, capsys, *plain)
        message = refusal(capsys, train_vae, command(train_vae, world, tmp_path, "--held-out", 0))
    assert "steps: 4 -> 2" in message
    train(world, tmp_path, capsys, *flags, "--override", *flags[1:], "steps=5")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["overrides"][1:] == [{"step": 4, "flags": ["steps: 4 -> 5"]}]
    assert Autoencoder.load(tmp_path).config.scaling_factor == 1


def test_an_override_that_does_not_fit_the_state_is_refused(world, tmp_path, capsys):
    train(world, tmp_path, capsys)
    with unchanged(tmp_path):
        late = ("--override", "adversarial_weight=0.5")
        text = train(world, tmp_path, capsys, *late)
        assert f"{tmp_path} is finished" in text and "override" in text
        flags = (*late, "discriminator_layers=2", "steps=3")
        given = command(train_vae, world, tmp_path, "--held-out", 0, *flags)
        message = refusal(capsys, train_vae, given)
    assert re.search(r"step-0000002.*discriminator", message)


def test_settings_of_an_optimizer_can_be_changed(tmp_path):
    """They are not in the state; loading it would restore the old ones."""
    first, second = Toy(tmp_path / "run"), Toy(tmp_path / "run")
    first.train()
    (group,) = second.update.optimizers["optimizer"].param_groups
    group["weight_decay"] = 0.7
    second.train()
    (group,) = second.update.optimizers["optimizer"].param_groups
    assert group["weight_decay"] == 0.7
    moments = (toy.update.state_dict()["moments"]["optimizer"][0] for toy in (first, second))
    assert torch.equal(*(each["exp_avg"] for each in moments))


@pytest.mark.parametrize("wrong", ["steps", "stepz=3", "steps=many"])
def test_a_wrong_override_is_refused(world, tmp_path, capsys, wrong):
    given = command(train_vae, world, tmp_path / "run", "--override", wrong)
    message = refusal(capsys, train_vae, given)
    assert re.search("NAME=VALUE|stepz|many", message)
    assert not (tmp_path / "run").exists()


def test_overrides_win_over_flags_in_any_order():
    for argv in (
        ["--override", "steps=7", "seed=3", "--data", "d", "--out", "o"],
        ["--data", "d", "--out", "o", "--steps", "5", "--override", "steps=7", "seed=3"],
    ):
        config = parse(CONFIGS[train_vae], argv, "", train_vae.PRESETS)
        assert (config.steps, config.seed) == (7, 3)


def test_flags_that_change_no_result_may_differ(tmp_path):
    Run(tmp_path, {"seed": 0, "workers": 4, "accumulate": 1})
    run = Run(tmp_path, {"seed": 0, "workers": 0, "accumulate": 2})
    assert run.changed == {}


def test_other_settings_are_refused_with_the_difference(tmp_path):
    Run(tmp_path / "run", {"rate": 0.1, "device": "cpu", "out": "a"})
    Run(tmp_path / "run", {"rate": 0.1, "device": "cuda", "out": "b"})  # says how, not what
    with pytest.raises(UserError, match=r"rate: 0\.1 -> 0\.2"):
        Run(tmp_path / "run", {"rate": 0.2, "device": "cpu", "out": "a"})


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(UserError, match=str(tmp_path)):
        Run(tmp_path, {})
    assert [file.name for file in tmp_path.iterdir()] == ["holiday.txt"]


def test_a_run_with_old_flag_names_is_resumed_under_the_new_ones(tmp_path, capsys):
    """`--evaluate-every` was `--look-every` once."""
    (tmp_path / "config.json").write_text(json.dumps({"seed": 0, "look_every": 500}))
    config = {"seed": 0, "evaluate_every": 500}
    Run(tmp_path, config)  # opening it changes nothing
    Run(tmp_path, json.loads((tmp_path / "config.json").read_text()))  # as the tools open it
    assert "look_every" in (tmp_path / "config.json").read_text()
    Run(tmp_path, config).resume({})
    assert "note: " in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text()) == config
    Run(tmp_path, config).resume({})
    assert "note: " not in capsys.readouterr().out
    with pytest.raises(UserError, match="evaluate_every: 500 -> 100"):
        Run(tmp_path, {**config, "evaluate_every": 100})


def test_a_flag_that_is_gone_hinders_only_runs_in_which_it_was_on(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"seed": 0, "augment": False}))
    Run(tmp_path, {"seed": 0}).resume({})
    (tmp_path / "config.json").write_text(json.dumps({"seed": 0, "augment": True}))
    with pytest.raises(UserError, match=r"--augment, .*another --out"):
        Run(tmp_path, {"seed": 0})


def test_the_message_has_the_flag_that_changes_settings(tmp_path):
    run, before = tmp_path / "run", {"steps": 264, "shard": True, "loss": {"kl_weight": 1e-6}}
    Run(run, before)
    after = {"steps": 900, "shard": True, "loss": {"kl_weight": 1e-5}}
    with pytest.raises(UserError, match=r"--override kl-weight=1e-05 steps=900 at its end"):
        Run(run, after)
    Run(run, {**after, "override": ["kl_weight=1e-5", "steps=900"]})


def test_a_run_cannot_go_back(tmp_path):
    toy = Toy(tmp_path / "run", {"steps": 12})
    toy.train()
    with pytest.raises(UserError, match=r"steps=9 is before step 12"):
        Run(tmp_path / "run", {"steps": 9, "override": ["steps=9"]})
    with pytest.raises(UserError, match=r"steps=9 is before step 12"):  # no override is proposed
        Run(tmp_path / "run", {"steps": 9})
    Run(tmp_path / "run", {"steps": 15, "override": ["steps=15"]})


def test_more_steps_go_on(tmp_path, capsys):
    toy = Toy(tmp_path / "run", {"steps": 12})
    toy.train()
    longer = Toy(tmp_path / "run", {"steps": 15})
    assert longer.run.saved_step == 12 and not longer.run.finished(15)
    longer.train()
    assert "changed from step 12 on: steps: 12 -> 15" in capsys.readouterr().out
    assert Run(tmp_path / "run", {"steps": 15}).config["overrides"][-1]["step"] == 12


def test_fewer_steps_are_proposed_only_where_the_run_can_follow(tmp_path):
    Run(tmp_path / "begun", {"steps": 15, "seed": 0})
    with pytest.raises(UserError, match=r"--override steps=14 at its end"):
        Run(tmp_path / "begun", {"steps": 14, "seed": 0})
    Run(tmp_path / "begun", {"steps": 14, "seed": 0, "override": ["steps=14"]})
    Toy(tmp_path / "run", {"steps": 12, "seed": 0}).train()
    with pytest.raises(
        UserError, match=r"(?s)steps: 12 -> 9.*--override seed=1 at its end"
    ) as refused:
        Run(tmp_path / "run", {"steps": 9, "seed": 1})
    assert "steps=9" not in str(refused.value)


def test_a_folder_of_another_training_is_named(tmp_path):
    Run(tmp_path / "run", {"loss": {}, "seed": 0})
    with pytest.raises(UserError, match=r"a run of train_vae\.py, and this is train_clip\.py"):
        Run(tmp_path / "run", {"context_length": None, "seed": 1})
