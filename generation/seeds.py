"""Seeds as one writes them: 7, or 1,5,10-20."""

import re

from foundation.errors import UserError

HIGHEST = 2**63 - 1
MOST = 100_000  # in one list: a range typed wrong should not fill a disk


def parse_seeds(text: str, count: int) -> tuple[int, ...]:
    """One seed, from which pictures count on, or those of each prompt; the latter are several.

    count: pictures of each prompt, which a list says by itself.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, end = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if end < first or end > HIGHEST:
            raise UserError(
                f"--seed {text} is not understood at {part!r}: give a number from 0 to 2^63 - 1, "
                "or numbers and rising ranges with commas between, such as 1,5,10-20."
            )
        if len(seeds) + end - first >= MOST:
            raise UserError(f"--seed {text} asks for more than {MOST} pictures of each prompt.")
        seeds += range(first, end + 1)
    if len(seeds) > 1 and count > 1:
        raise UserError(
            f"--seed {text} is {len(seeds)} seeds, so {len(seeds)} pictures of each prompt; leave "
            f"out --count {count}."
        )
    return tuple(seeds)
