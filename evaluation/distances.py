"""Distances between two sets of images, from their features.

Fréchet distance, KID, precision and recall, and Inception Score are torch-fidelity's functions, so
the numbers are those that others report. Density, coverage and the distance of CMMD are our own
code, because neither torch-fidelity nor torchmetrics has them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.estimates import (
    RESAMPLES,
    Z95,
    Estimate,
    mean_estimate,
    resampling_weights,
    share_estimate,
    wilson,
)
from foundation.errors import MissingFileError, NotFiniteError, UserError

Features = Float[Tensor, "_ _"]  # of a set; two sets that are compared have equal widths

MANY_IMAGES = 10_000  # below, a Fréchet distance depends on the number of images
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # torch-fidelity's
NEIGHBOR = 3  # of precision and recall, torch-fidelity's
COVERAGE_NEIGHBOR = 5  # Naeem et al. 2020
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # Jayasumana et al. 2024, section 4
IS_SPLITS = 10
LEADING = 32  # directions in which the interval of a Fréchet distance is computed
FRECHET_RESAMPLES = 100
KID_INTERVAL_IMAGES = 2000  # of each set; the interval of more is scaled from these
ROWS = 2048  # of a matrix of distances that exist at once
FEWEST = {  # images that each set needs
    "frechet": 2,
    "kid": 2,
    "precision": NEIGHBOR + 2,
    "coverage": COVERAGE_NEIGHBOR + 2,
    "cmmd": 2,
    "inception_score": IS_SPLITS,
}


def fidelity(module: str) -> Any:
    """Import a module of torch-fidelity.

    Raises:
        MissingFileError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(f"torch_fidelity.{module}")
    except ModuleNotFoundError as error:
        raise MissingFileError(
            "distances between sets of images need torch-fidelity, which is not installed: "
            'pip install "torch-fidelity>=0.4"'
        ) from error


def check_features(features: Features, name: str) -> Features:
    """Refuse features that are not finite; return them.

    name: of the set and the network, for the message.

    Raises:
        NotFiniteError: names the first bad row.
    """
    bad = (~features.isfinite().all(dim=1)).nonzero().flatten()
    if len(bad):
        raise NotFiniteError(
            f"the features of {name} are not finite for {len(bad)} of {len(features)} images, the "
            f"first of them image {int(bad[0])}. A distance would be NaN: look at these images, "
            "or leave out this feature space."
        )
    return features


def check_pair(features: Features, reference: Features, metric: str) -> None:
    """Refuse two sets that cannot be compared.

    Raises:
        UserError: too few images, or features of other widths.
    """
    if features.shape[1] != reference.shape[1]:
        raise UserError(
            f"the features have {features.shape[1]} numbers an image and the reference has "
            f"{reference.shape[1]}: they are of different networks. Compute both with the same."
        )
    fewest = FEWEST[metric]
    for name, some in (("samples", features), ("reference", reference)):
        if len(some) < fewest:
            raise UserError(f"{metric} needs at least {fewest} images; the {name} are {len(some)}.")


def small_sample_note(images: int, width: int) -> str:
    """Return what a distance of few images must be labeled with; "" if there are enough."""
    if images >= MANY_IMAGES:
        return ""
    note = f"small sample: {images:,} images, so it is higher than that of more images would be"
    if images <= width:
        note += f"; not more images than the {width:,} numbers of a feature"
    return f"{note}. Compare it only with the same number of images, and look at KID first"


# Fréchet distance ---------------------------------------------------------------------------------


def frechet_value(features: Features, reference: Features) -> float:
    """Return the Fréchet distance of Gaussians with the means and covariances of two sets.

    Heusel et al. 2017 (arXiv:1706.08500), eq. 6, as torch-fidelity computes it. With features of
    Inception it is called FID.
    """
    check_pair(features, reference, "frechet")
    module = fidelity("metric_fid")
    sets = [
        module.fid_features_to_statistics(some.detach().cpu().double())
        for some in (features, reference)
    ]
    return float(module.fid_statistics_to_metric(*sets, verbose=False)[module.KEY_METRIC_FID])


def check_self_test(name: str, reference: Features) -> None:
    """Refuse to go on if the distance of the reference to itself is not 0 within rounding.

    Raises:
        UserError: it is not.
    """
    value = frechet_value(reference, reference)
    scale = reference.double().var(dim=0).sum().item()
    if not abs(value) <= 1e-3 * scale + 1e-9:
        raise UserError(
            f"the self-test fails: the Fréchet distance in {name} of the images to themselves is "
            f"{value:g}, and must be 0. The features may be too large for float64 or be constant."
        )


def frechet_distance(
    features: Features,
    reference: Features,
    paired: bool = False,
    seed: int = 0,
    with_interval: bool = True,
) -> Estimate:
    """Return the Fréchet distance with an interval.

    The interval comes from the deviation of the distance over resampled images, in the `LEADING`
    directions in which the reference varies most. It is around the value, not around the mean of
    the resampled distances, because resampling also adds a bias of its own.

    paired: row k of both sets belongs to the same image.
    """
    value = frechet_value(features, reference)
    note = small_sample_note(min(len(features), len(reference)), features.shape[1])
    if not with_interval:
        return Estimate(value, None, None, "lower", note)
    first, second = leading_directions(features, reference)
    count, other = len(first), len(second)
    values = []
    for k in range(FRECHET_RESAMPLES):
        weights = resampling_weights(count, 1, seed + k)[0]
        others = weights if paired else resampling_weights(other, 1, seed + 10_000 + k)[0]
        values.append(gaussian_distance(*moments(first, weights), *moments(second, others)))
    half = Z95 * torch.stack(values).std().item()
    return Estimate(value, max(0.0, value - half), value + half, "lower", note)


def leading_directions(features: Features, reference: Features) -> tuple[Features, Features]:
    """Project both sets onto the directions in which the reference varies most, in float64."""
    first, second = features.cpu().double(), reference.cpu().double()
    if first.shape[1] <= LEADING:
        return first, second
    centered = second - second.mean(dim=0)
    if len(second) < second.shape[1]:  # the smaller of the two matrices of products
        values, vectors = torch.linalg.eigh(centered @ centered.T)
        axes = centered.T @ vectors[:, -LEADING:]
        axes = axes / values[-LEADING:].clamp_min(values[-1] * 1e-12 + 1e-300).sqrt()
    else:
        axes = torch.linalg.eigh(centered.T @ centered)[1][:, -LEADING:]
    return first @ axes, second @ axes


def moments(
    features: Float[Tensor, "n d"], weights: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Return mean and covariance of weighted rows; the weights add up to 1."""
    mean = weights @ features
    centered = features - mean
    count = len(features)
    return mean, (centered * weights[:, None]).T @ centered * (count / max(count - 1, 1))


def gaussian_distance(
    mean: Float[Tensor, " d"],
    covariance: Float[Tensor, "d d"],
    other_mean: Float[Tensor, " d"],
    other_covariance: Float[Tensor, "d d"],
) -> Float[Tensor, ""]:
    """Return the Fréchet distance of two Gaussians (Dowson & Landau 1982), for symmetric input."""
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()  # root @ root.T is the covariance
    cross = torch.linalg.eigvalsh(root.T @ other_covariance @ root).clamp_min(0).sqrt().sum()
    traces = covariance.trace() + other_covariance.trace()
    return (mean - other_mean).square().sum() + traces - 2 * cross


# Kernel distances ---------------------------------------------------------------------------------


def kid_value(features: Features, reference: Features, seed: int = 2020) -> float:
    """Return torch-fidelity's KID: the mean over subsets of 1,000 images.

    Binkowski et al. 2018 (arXiv:1801.01401). If there are fewer images, all of them are one subset.
    """
    check_pair(features, reference, "kid")
    module = fidelity("metric_kid")
    fewest = min(len(features), len(reference))
    whole = fewest <= KID_SUBSET_SIZE and len(features) == len(reference)
    found = module.kid_features_to_metric(
        features.detach().cpu().double(),
        reference.detach().cpu().double(),
        kid_subsets=1 if whole else KID_SUBSETS,
        kid_subset_size=min(KID_SUBSET_SIZE, fewest),
        rng_seed=seed,
        verbose=False,
    )
    return float(found[module.KEY_METRIC_KID_MEAN])


def kernel_distance(
    features: Features,
    reference: Features,
    paired: bool = False,
    seed: int = 0,
    with_interval: bool = True,
) -> Estimate:
    """Return KID with an interval from resampled images.

    Pairs of an image with itself are left out of resampled sets, as of the sets themselves. The
    interval is computed from at most `KID_INTERVAL_IMAGES` images of each set.
    """
    value = kid_value(features, reference)
    if not with_interval:
        return Estimate(value, None, None, "lower")
    sets = [thinned(some, seed) for some in (features, reference)]
    (x, y), width = sets, features.shape[1]
    weights = resampling_weights(len(x), RESAMPLES, seed)
    others = weights if paired and len(x) == len(y) else resampling_weights(len(y), seed=seed + 1)
    own = without_diagonal((x @ x.T / width + 1) ** 3, weights)
    other = without_diagonal((y @ y.T / width + 1) ** 3, others)
    cross = ((weights @ (x @ y.T / width + 1) ** 3) * others).sum(dim=1)
    spread = own + other - 2 * cross
    scale = (len(x) / len(features)) ** 0.5
    half = Z95 * spread.std().item() * scale
    return Estimate(value, value - half, value + half, "lower")


def thinned(features: Features, seed: int) -> Float[Tensor, "n d"]:
    """Return at most `KID_INTERVAL_IMAGES` rows, chosen at random, in float64."""
    features = features.cpu().double()
    if len(features) <= KID_INTERVAL_IMAGES:
        return features
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    return features[order[:KID_INTERVAL_IMAGES]]


def without_diagonal(
    kernel: Float[Tensor, "n n"], weights: Float[Tensor, "resamples n"]
) -> Float[Tensor, " resamples"]:
    """Return the weighted mean of a kernel over all pairs of two different images."""
    kernel = kernel - kernel.diagonal().diag()
    pairs = 1 - weights.square().sum(dim=1)
    return ((weights @ kernel) * weights).sum(dim=1) / pairs


def cmmd(features: Features, reference: Features, seed: int = 0) -> Estimate:
    """Return the distance of CMMD: the squared MMD of unit vectors, times 1000.

    Jayasumana et al. 2024 (arXiv:2401.09603): a Gaussian kernel with sigma 10 over CLIP embeddings.
    As there, pairs of an image with itself count, so equal sets give 0.
    """
    check_pair(features, reference, "cmmd")
    x, y = (torch.nn.functional.normalize(some.double(), dim=1) for some in (features, reference))
    own, other = gaussian_means(x, x), gaussian_means(y, y)
    cross, cross_back = gaussian_means(x, y), gaussian_means(y, x)
    value = own.mean() + other.mean() - cross.mean() - cross_back.mean()
    # The influence of each image on the value; its spread gives the standard error.
    errors = [
        2 * (mine - across).std() / len(mine) ** 0.5
        for mine, across in ((own, cross), (other, cross_back))
    ]
    half = CMMD_SCALE * Z95 * float(torch.stack(errors).norm())
    scaled = CMMD_SCALE * value.item()
    return Estimate(scaled, scaled - half, scaled + half, "lower")


def gaussian_means(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, " n"]:
    """Return the mean over y of the Gaussian kernel with each x."""
    return torch.cat(
        [(-(distances**2) / (2 * CMMD_SIGMA**2)).exp().mean(dim=1) for distances in rows(x, y)]
    )


def rows(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Iterator[Float[Tensor, "some m"]]:
    """Yield the distances of some of x to all of y at a time."""
    for some in x.split(ROWS):
        yield torch.cdist(some, y)


# Precision and recall, density and coverage -------------------------------------------------------


def precision_recall(features: Features, reference: Features) -> dict[str, Estimate]:
    """Return the share of samples near the reference, and of the reference near samples.

    Kynkäänniemi et al. 2019 (arXiv:1904.06991), with torch-fidelity's third neighbor.
    """
    check_pair(features, reference, "precision")
    module = fidelity("metric_prc")
    found = module.prc_features_to_metric(
        features.detach().cpu(), reference.detach().cpu(), save_cpu_ram=True, verbose=False
    )
    precision, recall = (
        float(found[key]) for key in (module.KEY_METRIC_PRECISION, module.KEY_METRIC_RECALL)
    )
    return {
        "precision": wilson(precision, len(features)),
        "recall": wilson(recall, len(reference)),
    }


def density_coverage(features: Features, reference: Features, seed: int = 0) -> dict[str, Estimate]:
    """Return how densely samples lie around the reference, and how much of it they cover.

    Naeem et al. 2020 (arXiv:2002.09797), eq. 3 and 4. Density is about 1, coverage near 1 for two
    sets of the same distribution; unlike recall, coverage is not misled by outliers.
    """
    check_pair(features, reference, "coverage")
    x, y = features.cpu().double(), reference.cpu().double()
    radius = torch.cat([d.kthvalue(COVERAGE_NEIGHBOR + 1).values for d in rows(y, y)])
    inside = torch.zeros(len(x), dtype=torch.float64)
    covered = torch.zeros(len(y), dtype=torch.bool)
    for start, distances in zip(range(0, len(x), ROWS), rows(x, y), strict=True):
        hits = distances < radius
        inside[start : start + len(hits)] = hits.double().sum(dim=1) / COVERAGE_NEIGHBOR
        covered |= hits.any(dim=0)
    return {
        "density": mean_estimate(inside, "higher", seed=seed),
        "coverage": share_estimate(covered),
    }


def inception_score(logits: Float[Tensor, "n classes"]) -> Estimate:
    """Return torch-fidelity's Inception Score: the mean over ten parts of the shuffled images.

    Salimans et al. 2016 (arXiv:1606.03498). The interval is that of the mean over the parts.
    """
    if len(logits) < FEWEST["inception_score"]:
        raise UserError(
            f"the Inception Score needs at least {IS_SPLITS} images, got {len(logits)}."
        )
    module = fidelity("metric_isc")
    found = module.isc_features_to_metric(logits.detach().cpu(), splits=IS_SPLITS)
    mean = float(found[module.KEY_METRIC_ISC_MEAN])
    half = Z95 * float(found[module.KEY_METRIC_ISC_STD]) / (IS_SPLITS - 1) ** 0.5
    few = len(logits) < 5 * MANY_IMAGES
    note = f"small sample: {len(logits):,} images, usual are 50,000" if few else ""
    return Estimate(mean, mean - half, mean + half, "higher", note)


def all_distances(
    features: Features,
    reference: Features,
    *,
    paired: bool = False,
    is_clip: bool = False,
    only: Sequence[str] | None = None,
    with_interval: bool = True,
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Return every distance that the number of images allows, and why the others are missing.

    Args:
        paired: row k of both sets belongs to the same image.
        is_clip: the features are of an image tower trained with texts, as CMMD needs.
        only: names in `FEWEST`; None: all of them.
        with_interval: of Fréchet distance and KID; values alone are faster.
    """
    wanted = ["kid", "frechet", "precision", "coverage", *(["cmmd"] if is_clip else [])]
    wanted = [metric for metric in wanted if only is None or metric in only]
    found: dict[str, Estimate] = {}
    missing: dict[str, str] = {}
    for metric in wanted:
        images = min(len(features), len(reference))
        if images < FEWEST[metric]:
            missing[metric] = f"needs at least {FEWEST[metric]} images, there are {images}"
        elif metric == "kid":
            found["kid"] = kernel_distance(features, reference, paired, with_interval=with_interval)
        elif metric == "frechet":
            found["frechet"] = frechet_distance(
                features, reference, paired, with_interval=with_interval
            )
        elif metric == "precision":
            found |= precision_recall(features, reference)
        elif metric == "coverage":
            found |= density_coverage(features, reference)
        else:
            found["cmmd"] = cmmd(features, reference)
    if "kid" in found and min(len(features), len(reference)) >= MANY_IMAGES:
        found = {"frechet": found["frechet"], **found}  # KID goes first only for few images
    return found, missing
