"""What the system did to a training, where a library reports it as an error of its own.

PyTorch says with a RuntimeError that memory ran out, or that a process which decodes images is no
more. Both are nothing that we can mend, and no bugs either.
"""

import re

NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|Cannot allocate memory"
    r"|ALLOC_FAILED|Storage size calculation overflowed|Invalid buffer size|std::bad_alloc",
    re.IGNORECASE,
)
LOST_WORKER = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:exited unexpectedly|is killed by signal)"
)
NO_SHARED_MEMORY = re.compile(r"bus error|insufficient shared memory|shm", re.IGNORECASE)
MEMORY_ADVICE = (
    "the memory does not suffice. Use smaller images, or fewer at once (--batch-size); "
    "trainings also have --accumulate, and --find-batch-size measures what fits."
)


def describe_failure(error: BaseException) -> str:
    """Return the message for an error that the system caused, or "" for every other one."""
    if isinstance(error, MemoryError):
        return MEMORY_ADVICE
    if not isinstance(error, RuntimeError):
        return ""
    text = str(error)
    if lost := LOST_WORKER.search(text):
        cause = "the memory was full, and the system ended it; or somebody else did"
        advice = "Use fewer (--workers), or smaller images."
        if NO_SHARED_MEMORY.search(text):
            cause = "the shared memory (/dev/shm) was full"
            advice = "Use fewer (--workers), or give the container more shared memory."
        return (
            f"a process that decodes images has ended (process {lost[1]}). The usual cause: "
            f"{cause}. {advice} The last saved state is whole: the same command again goes on "
            "from it."
        )
    return MEMORY_ADVICE if NO_MEMORY.search(text) else ""
