"""The flags of every training that reads image-text pairs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

from dataset.captions.variants import CaptionChoice, TagVariants, parse_languages
from dataset.options import ReadOptions
from foundation.errors import UserError
from foundation.seeds import derived_seed
from training.config import TrainingConfig, extended
from training.flags import Bound, Fraction, Groups, Needs, NonNegative, Positive, Text, needs

ASPECT_WORDS = "1 or more, the longer side by the shorter"
Aspect = Annotated[float, Bound(lambda x: x >= 1, ASPECT_WORDS, on_help_page=False)]
TAG_VARIANTS = 16  # of each caption


@dataclass(frozen=True, kw_only=True)
class DataTrainingConfig(TrainingConfig, ReadOptions):
    """Flags of every training that reads image-text pairs."""

    GROUPS: ClassVar[Groups] = extended(TrainingConfig.GROUPS, {"data": ReadOptions.READ_FLAGS})


@dataclass(frozen=True, kw_only=True)
class CaptionTrainingConfig(DataTrainingConfig):
    """Flags of every training that learns from captions."""

    GROUPS: ClassVar[Groups] = extended(
        DataTrainingConfig.GROUPS,
        {
            "captions": (
                *("caption_languages", "caption_prefix", "caption_suffix", "shuffle_tags"),
                *("keep_tags", "tag_dropout", "tag_separator", "tag_variants"),
            )
        },
    )

    NEEDS: ClassVar[Needs] = (
        needs("keep_tags", "tag_separator", "tag_variants", shuffle_tags=True, tag_dropout=True),
    )

    # train only on captions of these: en,de; or with the chance of each: en=3,de=1
    caption_languages: Text | None = None
    caption_prefix: Text | None = None  # words before every caption
    caption_suffix: Text | None = None  # words after every caption
    shuffle_tags: bool = False  # bring the tags of a caption into random orders
    # tags at the beginning that are neither moved nor left out; left out: 0
    keep_tags: NonNegative[int] | None = None
    tag_dropout: Fraction | None = None  # chance of each tag to be left out
    tag_separator: Text | None = None  # between tags; left out: a comma
    # variants of each caption that are made, of which each step draws one; left out: 16
    tag_variants: Positive[int] | None = None

    def check(self) -> None:
        super().check()
        self.caption_choice()
        if self.tag_separator == "":
            raise UserError("--tag-separator is empty; leave it out for tags between commas.")

    def caption_choice(self) -> CaptionChoice:
        """Return which captions are trained on."""
        return recorded_choice(asdict(self))

    def variants(self) -> TagVariants | None:
        """Return the variants of captions; None if they are trained on as they are."""
        if not self.shuffle_tags and not self.tag_dropout:
            return None
        return TagVariants(
            count=self.tag_variants or TAG_VARIANTS,
            seed=derived_seed(self.seed, "tag variants"),
            shuffle=self.shuffle_tags,
            dropout=self.tag_dropout or 0.0,
            keep=self.keep_tags or 0,
            separator=self.tag_separator or ",",
        )


def recorded_choice(flags: Mapping[str, Any]) -> CaptionChoice:
    """Return which captions a training with these flags is on.

    Raises:
        UserError: the languages cannot be read.
    """
    try:
        languages = parse_languages(flags.get("caption_languages") or "")
    except UserError as error:
        raise UserError(f"--caption-languages {error}") from None
    return CaptionChoice(
        languages=languages,
        prefix=flags.get("caption_prefix") or "",
        suffix=flags.get("caption_suffix") or "",
    )
