"""Stage 0 as train_clip.py runs it: from the data to a CLIP."""

from collections.abc import Sequence

from conditioning.clip import Clip
from dataset.captions.choice import caption_draws
from dataset.images.transform import ImageTransform
from dataset.loader import ImageBatches
from dataset.order import check_batch_size
from dataset.table import Pair, PairList
from foundation import collectives
from foundation.files import atomic_folder
from foundation.seeds import derived_seed
from stages.before_training import clip_trials, print_batch_sizes, train_or_overfit
from stages.clip import LARGEST_RETRIEVAL, ClipTrainer, build_clip, measure_recall
from stages.data import CHECKED_PAIRS, data_identity, read_pairs
from stages.flags.clip import ClipTrainingConfig
from stages.memory import clip_work
from stages.plan import RunPlan
from training.acceleration.compiled import check_compiler
from training.config_json import to_json
from training.device import pick_device
from training.logging.progress import progress_bar
from training.loop import train
from training.run import Run


def run(config: ClipTrainingConfig) -> None:
    """Train, or do what one of the flags asks for instead."""
    train_or_overfit(config, start)


def start(config: ClipTrainingConfig) -> None:
    device = pick_device(config.device)
    if config.compile:
        check_compiler(device)
    clip = build_clip(config)
    pairs, held_out = read_pairs(config)
    check_batch_size(config.batch_size, len(pairs))
    print_plan(config, clip, pairs, held_out)
    plan = RunPlan(
        training="train_clip.py",
        config=config,
        device=device,
        work=lambda config: clip_work(config, clip),
        pairs=pairs,
        held_out=len(held_out),
    )
    plan.print_remarks()
    if config.dry_run:
        return print(plan.describe())
    if config.find_batch_size:
        trials = clip_trials(config, clip.to(device), pairs)
        return print_batch_sizes(config, trials, plan.bytes_at_once, len(pairs), first=2)
    plan.check_memory()
    with collectives.rank_zero_first():
        run = Run(config.out, to_json(config) | data_identity(pairs, held_out), lock=True)
    if run.finished(config.steps):
        return
    trainer = ClipTrainer(config, clip.to(device), make_batches(config, clip, pairs))
    print(
        "recall@k: fraction of images whose caption is among the k best "
        f"(training: {min(len(pairs), LARGEST_RETRIEVAL)} candidates, held out: {len(held_out)})."
    )

    def evaluate(step: int) -> dict[str, float | str]:
        on_training_pairs = measure_recall(config, clip, pairs, "train")
        return {**on_training_pairs, **measure_recall(config, clip, held_out, "held_out")}

    train(run, config.plan(), trainer.state, trainer.step, evaluate, "train_clip")
    if not collectives.rank():
        with atomic_folder(run.model) as model:
            clip.text_encoder().save(model, {"config": run.config})
            clip.save(model / "clip")
    run.finish(config.steps)
    print(f"the model is in {run.model}; go on with: train_ldm.py --text-encoder {run.path} ...")


def make_batches(config: ClipTrainingConfig, clip: Clip, pairs: PairList) -> ImageBatches:
    return ImageBatches(
        pairs,
        ImageTransform(clip.size),
        config.batch_size,
        derived_seed(config.seed, "order"),
        config.workers,
        rank=collectives.rank(),
        world_size=collectives.world_size(),
        draws=caption_draws(pairs, config.variants(), len(pairs)),
        progress=progress_bar,
    )


def print_plan(
    config: ClipTrainingConfig, clip: Clip, pairs: Sequence[Pair], held_out: Sequence[Pair]
) -> None:
    image, both = (
        sum(weight.numel() for weight in module.parameters()) / 1e6
        for module in (clip.network.visual, clip)
    )
    epochs = config.steps * config.batch_size / len(pairs)
    print(
        f"CLIP of {image:.1f} + {both - image:.1f} million parameters (images, texts) at "
        f"{clip.size}x{clip.size}; {len(pairs)} images ({len(held_out)} held out), "
        f"{config.steps} steps of {config.batch_size}: {epochs:.1f} epochs."
    )
    length = clip.tokenizer.context_length
    captions = [caption for pair in pairs[:CHECKED_PAIRS] for caption in pair.captions]
    too_long = sum(clip.tokenizer.count(caption) > length for caption in captions)
    if too_long:
        print(
            f"note: {too_long} of {len(captions)} captions have more than {length} tokens and lose "
            "their end; --context-length sets that number."
        )
