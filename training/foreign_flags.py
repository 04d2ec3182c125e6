"""Flags of other programs: diffusers' scripts, kohya's sd-scripts, CompVis' repositories.

Whoever comes from them is told the name here, or why there is no such flag. docs/coming-from.md has
the table; a test holds both together.
"""

from collections.abc import Collection, Iterator, Sequence

from training.flags import flag_name

# Flag there, without dashes -> the field of the same meaning here.
OTHER_NAMES = {
    "lr": "learning_rate",
    "base-learning-rate": "learning_rate",
    "lr-warmup-steps": "warmup",
    "max-train-steps": "steps",
    "iterations": "steps",
    "num-inference-steps": "steps",
    "ddim-steps": "steps",
    "train-batch-size": "batch_size",
    "bs": "batch_size",
    "gradient-accumulation-steps": "accumulate",
    "resolution": "size",
    "image-size": "size",
    "output-dir": "out",
    "outdir": "out",
    "logdir": "out",
    "train-data-dir": "data",
    "dataset": "data",
    "dataset-name": "data",
    "checkpointing-steps": "save_every",
    "save-every-n-steps": "save_every",
    "validation-steps": "evaluate_every",
    "eval-every": "evaluate_every",
    "validation-prompts": "preview_prompts",
    "validation-prompt": "preview_prompts",
    "sample-prompts": "preview_prompts",
    "mixed-precision": "precision",
    "cfg-scale": "guidance_scale",
    "cfg": "guidance_scale",
    "scale": "guidance_scale",
    "scheduler": "sampler",
    "rank": "lora",
    "network-dim": "lora",
    "network-alpha": "lora_alpha",
    "max-grad-norm": "clip_norm",
    "dataloader-num-workers": "workers",
    "n-samples": "count",
    "images-per-prompt": "count",
    "num-images-per-prompt": "count",
    "pretrained-model-name-or-path": "init_from",
    "caption-dropout-rate": "caption_dropout",
    "noise-offset": "offset_noise",
    "snr-gamma": "gamma",
    "min-snr-gamma": "gamma",
    "prediction-type": "prediction",
    "v-parameterization": "prediction",
}
# Flag there -> why there is none here. Only trainings have those of a training.
NOT_NEEDED = {
    "resume-from-checkpoint": "the same command again continues a run",
    "resume": "the same command again continues a run",
    "actual-resume": "the same command again continues a run; --init-from reads weights alone",
    "use-ema": "weights are always averaged; --ema-halflife says over how many images",
    "scale-lr": "the learning rate is used as given",
    "num-train-epochs": "the length of a training is given in --steps",
    "max-train-epochs": "the length of a training is given in --steps",
    "plms": "it is --sampler plms",
    "dpm": "it is --sampler dpmpp_2m",
    "n-iter": "-n is the number of pictures of each prompt",
}


def names_of_others(argv: Sequence[str], known: Collection[str]) -> Iterator[str]:
    """Yield a line for each flag of other programs.

    known: the fields of the script's flags; what is among them has the same name here.
    """
    for word in argv:
        flag = word.partition("=")[0].replace("_", "-")
        name = flag.removeprefix("--")
        if flag == name or name.replace("-", "_") in known:
            continue
        ours = OTHER_NAMES.get(name)
        if ours in known:
            yield f"{flag} is called {flag_name(str(ours))} here."
        elif name in NOT_NEEDED:
            yield f"{flag} is not needed here: {NOT_NEEDED[name]}."
