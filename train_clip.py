"""python train_clip.py --data data/openmoji --out runs/clip

Stage 0, optional: a CLIP of your own, whose text tower then conditions stage 2. For words that
public models never saw, or with no network. Stopped or killed, it goes on when the same command is
run again. A judge of samples is a second one: --preset judge-64 --seed 1 --out runs/judge
"""

from collections.abc import Sequence

from conditioning.clip import Clip
from dataset.images.transform import ImageTransform
from dataset.loader import ImageBatches
from dataset.order import check_batch_size
from dataset.table import Pair
from foundation import collectives
from foundation.files import atomic_folder
from foundation.hashing import derived_seed
from stages.clip import PRESETS, Config, Stage, build_clip, recalls
from stages.data import data_identity, read_pairs
from stages.overfit import learn_by_heart
from stages.plan import clip_memory
from stages.trials import clip_trials, tell_batch_size
from training.cli import parse, pick_device, run_main
from training.config_json import to_json
from training.logging.progress import progress_bar
from training.loop import train
from training.run import Run

COUNTED = 10_000  # pairs whose captions are looked at, whether they are too long


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__, PRESETS)
    if config.overfit:
        learn_by_heart(config, start)
    else:
        start(config)


def start(config: Config) -> None:
    device = pick_device(config.device)
    clip = build_clip(config)
    pairs, held_out = read_pairs(config)
    check_batch_size(config.batch_size, len(pairs))
    print_plan(config, clip, pairs, held_out)
    if config.dry_run:
        print(clip_memory(config, clip.to(device)).describe())
        return
    if config.find_batch_size:
        trials = clip_trials(config, clip.to(device), pairs)
        return tell_batch_size(config, trials, clip_memory(config, clip), len(pairs), first=2)
    with collectives.rank_zero_first():
        run = Run(config.out, to_json(config) | data_identity(pairs, held_out))
    if run.finished(config.steps):
        return
    batches = ImageBatches(
        pairs,
        ImageTransform(clip.size),
        config.batch_size,
        derived_seed(config.seed, "order"),
        config.workers,
        rank=collectives.rank(),
        ranks=collectives.world_size(),
        progress=progress_bar,
    )
    stage = Stage(config, clip.to(device), batches)
    print("retrieval says how often the right text is among the k nearest to an image of the set.")

    def evaluate(step: int) -> dict[str, float]:
        return recalls(config, clip, pairs, "train") | recalls(config, clip, held_out, "held_out")

    train(run, config.plan(), stage.parts, stage.step, evaluate, "train_clip")
    if not collectives.rank():
        with atomic_folder(run.model) as model:
            clip.text_encoder().save(model, {"config": run.config})
            clip.save(model / "clip")
    run.finish(config.steps)
    print(f"the model is in {run.model}; go on with: train_ldm.py --text-encoder {run.path} ...")


def print_plan(config: Config, clip: Clip, pairs: Sequence[Pair], held_out: Sequence[Pair]) -> None:
    image, whole = (
        sum(weight.numel() for weight in part.parameters()) / 1e6
        for part in (clip.network.visual, clip)
    )
    epochs = config.steps * config.batch_size / len(pairs)
    print(
        f"CLIP of {image:.1f} + {whole - image:.1f} million parameters (images, texts) at "
        f"{clip.size}x{clip.size}; {len(pairs)} images ({len(held_out)} held out), "
        f"{config.steps} steps of {config.batch_size}: {epochs:.1f} epochs."
    )
    length = clip.tokenizer.context_length
    captions = [caption for pair in pairs[:COUNTED] for caption in pair.captions]
    cut = sum(clip.tokenizer.count(caption) > length for caption in captions)
    if cut:
        print(
            f"note: {cut} of {len(captions)} captions have more than {length} tokens and lose "
            "their end; --context-length sets that number."
        )


if __name__ == "__main__":
    run_main(main)
