"""Run one part of benchmarks/gpu.py: python -m benchmarks.gpu_parts.worker JOB.

JOB is a `Job` as JSON.
"""

import importlib
import json
import sys
import traceback

from benchmarks.gpu_parts.job import Job, describe


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    module, function, *arguments = job.part.split(":")
    try:
        part = importlib.import_module(f"benchmarks.gpu_parts.{module}")
        getattr(part, function)(job, *arguments)
    except Exception as error:
        traceback.print_exc()
        job.record(arguments[-1] if arguments else function, error=describe(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
