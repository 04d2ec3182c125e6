"""How well samples follow captions of each language: `evaluate.py model --language-samples`.

A picture may have been trained on in some languages and not in others. So the captions of training
images and those that the training held out are measured apart, in each language.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch

from dataset.captions.choice import count_languages, describe_languages, only_language
from dataset.table import PairList
from evaluation.estimates import Estimate
from foundation.errors import UserError
from foundation.hashing import generator
from stages.evaluation.data import ChosenImages, chosen_pairs, shuffled, unseen_captions
from stages.evaluation.drawing import MeasuredSamples, alignment
from stages.evaluation.model import ModelMeasurement
from stages.evaluation.report import as_text, interval
from training.tools.page import number_table

RECALL = "recall@1"


@dataclass(frozen=True)
class LanguageSamples:
    """The samples of one language: of captions of the training, and of held-out ones."""

    language: str
    trained: MeasuredSamples
    held_out: MeasuredSamples

    def metrics(self) -> dict[str, dict[str, Estimate]]:
        """Return whose captions -> CLIP score and recall; none for those that there are not.

        The candidates are captions of this language. Held-out captions have as many as those of
        the training, which fill them up.
        """
        own = self.trained.samples
        texts = self.trained.numbers.rows("judge/texts")
        found = {
            name: alignment(self.trained.numbers.rows(f"judge/{key}"), texts, own.captions)
            for name, key in (("trained", "samples"), ("trained, real images", "real"))
        }
        if len(self.held_out.samples):
            found["held out"] = self.held_out.alignment("samples", self.trained)
            found["held out, real images"] = self.held_out.alignment("real", self.trained)
        return found


class LanguageRecall:
    """Samples of captions in each language of a data folder, drawn once and kept."""

    TITLE: ClassVar[str] = "recall by language"

    def __init__(self, measured: ModelMeasurement, count: int):
        """Choose captions.

        count: of each language, at most, of the training and of what is held out.

        Raises:
            UserError: no caption says its language.
        """
        self.measured = measured
        assert measured.judge is not None, "it finds captions of each language"
        every = replace(measured.choice, languages={})
        prompts, held_out = chosen_pairs(measured.config, every, notes=False)
        languages = [name for name in count_languages(prompts) if name]
        if chosen := measured.choice.languages:
            languages = [name for name in languages if name in chosen]
        if not languages:
            raise UserError(
                "language_samples needs captions with their languages (caption_languages). "
                f"{describe_languages(prompts.table)}"
            )
        self.samples = [
            self.choose(language, prompts, held_out, count) for language in sorted(languages)
        ]

    def choose(
        self, language: str, prompts: PairList, held_out: PairList, count: int
    ) -> LanguageSamples:
        """Choose captions of one language; of the training, of the same pictures in all of them."""
        measured = self.measured
        seed = generator(measured.config.seed, "captions by language")
        order = torch.randperm(len(prompts), generator=seed)
        pairs = only_language(shuffled(prompts, order, len(prompts)), language)
        source = f"captions in {language}"
        trained = ChosenImages(pairs[:count], source, 0)
        own = only_language(held_out, language)
        unseen = unseen_captions(measured.config, prompts, own, count)
        return LanguageSamples(language, self.measure(trained), self.measure(unseen))

    def measure(self, images: ChosenImages) -> MeasuredSamples:
        """Return the samples for the captions of these images, which are not drawn yet."""
        samples = self.measured.samples_of(images, self.measured.drawing.sampling)
        identity = f"numbers of captions {samples.sha256}"
        return MeasuredSamples(samples, self.measured.blocks(identity, len(samples)))

    def fill(self) -> None:
        """Draw what is not drawn yet, and compute what is not computed yet."""
        measured = self.measured
        for one in self.samples:
            for part, which in ((one.trained, ""), (one.held_out, ", held out")):
                title = f"samples of captions in {one.language}{which}"
                part.samples.draw(measured.pipeline, measured.drawing.sampling, f"drawing {title}")
                measured.embed_all(part, f"measuring {title}")


def report_languages(languages: LanguageRecall) -> tuple[list[dict[str, Any]], list[str]]:
    """Print the table; return its rows as JSON, and HTML."""
    head = ["language", "captions", RECALL, "real images"]
    head += ["held-out captions", f"{RECALL}, held out", "real images, held out"]
    rows: list[dict[str, Any]] = []
    cells: list[list[str]] = []
    for one in languages.samples:
        found = one.metrics()
        counts = {
            "trained": len(one.trained.samples),
            "held out": len(one.held_out.samples),
        }
        numbers = {
            name: {key: asdict(value) for key, value in metrics.items()}
            for name, metrics in found.items()
        }
        rows.append({"language": one.language, "captions": counts, **numbers})
        cells.append([one.language])
        for name, count in counts.items():
            cells[-1] += [
                str(count),
                *(recall(found.get(key)) for key in (name, f"{name}, real images")),
            ]
    note = (
        "The judge chooses among captions of the same language. Held-out captions are those of "
        "pictures that the training did not see in this language."
    )
    print(f"\n{languages.TITLE}:\n{as_text(head, cells)}")
    title = f"<h2>{languages.TITLE.capitalize()}</h2><p class=faint>{note}</p>"
    return rows, [title + number_table(head, cells)]


def recall(metrics: dict[str, Estimate] | None) -> str:
    """Return the recall with its interval, as a table shows it."""
    if metrics is None:
        return "-"
    return f"{metrics[RECALL].value:.3f} ({interval(metrics[RECALL])})"
