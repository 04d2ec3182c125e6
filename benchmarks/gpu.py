"""python benchmarks/gpu.py --minutes 9 --out gpu-results

One command for a new GPU: checks that everything runs on it, measures its limits and our speed,
also that of diffusers if it is installed, and trains the demo model for the minutes that are left.
Every part is a process with a time limit of its own: one that fails is recorded, and the rest goes
on. gpu.json and gpu.md are written anew after every part.

`--device cpu --rehearse` runs all parts at tiny sizes, to see that nothing is missing.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1]))  # prefer this checkout to an installed version

from foundation.errors import UserError
from training.cli import answer_early, parse, run_main
from training.flags import Positive


@dataclass(frozen=True, kw_only=True)
class Config:
    out: Path  # folder for gpu.json, gpu.md, gpu.log and the demo model
    minutes: Positive[float] = 9.0  # from start to end
    only: tuple[str, ...] = ()  # parts whose names contain one of these words; left out: all
    without: tuple[str, ...] = ()  # parts that are left out: names contain one of these words
    demo_minutes: float = 0.0  # of the time, kept for the demo model
    demo_preset: Literal["demo", "small-64", "small-128"] = "demo"  # of the demo model
    # for the demo model; made by recipes/openmoji.py or recipes/emoji.py
    data: Path = Path("data/openmoji")
    device: str = "auto"  # cuda, or cpu for a rehearsal
    rehearse: bool = False  # tiny sizes, to see that every part runs


if __name__ == "__main__":
    answer_early(Config, __doc__)  # the imports below take seconds


from benchmarks.gpu_parts.job import ROOT, Job, read_records
from benchmarks.gpu_parts.report import write_report
from training.device import pick_device

AT_ONCE = max(1, min(10, (os.cpu_count() or 1) * 5 // 8))  # checks, which a GPU has room for
SHORTEST = 20.0  # seconds; with less left, a part is not begun
RESERVE = 4.0  # seconds to end a part and to write the report
REHEARSAL_FACTOR = 10  # limits are longer where a CPU does the work of a GPU


@dataclass(frozen=True)
class BenchmarkPart:
    """A part: the function that does it, and the most seconds that it gets."""

    name: str
    function: str  # MODULE:FUNCTION:ARGUMENTS in benchmarks/gpu_parts
    seconds: float
    needs_diffusers: bool = False


# The compiler needs minutes, but hardly the GPU: it works during the checks, and keeps its code for
# the measurements.
CHECKS = (
    BenchmarkPart("compile U-Net 512", "denoiser_speed:measure:compiling:unet-512", 260),
    BenchmarkPart("compile drawing 512", "drawing_speed:measure:compiling:draw-512", 200),
    BenchmarkPart("check: three stages, killed and resumed", "correctness:stages", 240),
    BenchmarkPart("check: torchrun", "correctness:parallel", 120),
    BenchmarkPart("check: compiled stage 0", "correctness:compiled:clip", 150),
    BenchmarkPart("check: compiled stage 1", "correctness:compiled:vae", 150),
    BenchmarkPart("check: compiled stage 2", "correctness:compiled:ldm", 120),
    BenchmarkPart("check: compiled drawing", "correctness:graphs", 120),
    BenchmarkPart("check: no waiting", "correctness:waiting", 60),
    BenchmarkPart("check: too little memory", "correctness:memory", 60),
)
SPEED = (
    BenchmarkPart("limits", "machine:measure", 40),
    BenchmarkPart("U-Net 512", "denoiser_speed:measure:eager:unet-512", 75),
    BenchmarkPart("drawing 512", "drawing_speed:measure:eager:draw-512", 110),
    BenchmarkPart("U-Net 512 compiled", "denoiser_speed:measure:compiled:unet-512", 240),
    BenchmarkPart("autoencoder 256", "autoencoder_speed:measure:eager:vae-256", 60),
    BenchmarkPart("drawing 512 compiled", "drawing_speed:measure:compiled:draw-512", 130),
    BenchmarkPart("base-256", "denoiser_speed:measure:eager:base-256", 45),
    BenchmarkPart("U-Net 256", "denoiser_speed:measure:eager:unet-256", 60),
    BenchmarkPart("base-256 compiled", "denoiser_speed:measure:compiled:base-256", 130),
    BenchmarkPart("autoencoder 256 compiled", "autoencoder_speed:measure:compiled:vae-256", 150),
    BenchmarkPart(
        "diffusers 512 compiled", "denoiser_speed:measure:peer-compiled:unet-512", 130, True
    ),
    BenchmarkPart("U-Net 256 compiled", "denoiser_speed:measure:compiled:unet-256", 130),
    BenchmarkPart(
        "diffusers drawing compiled", "drawing_speed:measure:peer-compiled:draw-512", 110, True
    ),
    BenchmarkPart(
        "diffusers base-256 compiled", "denoiser_speed:measure:peer-compiled:base-256", 110, True
    ),
    BenchmarkPart(
        "diffusers autoencoder compiled",
        "autoencoder_speed:measure:peer-compiled:vae-256",
        110,
        True,
    ),
)
DEMO = BenchmarkPart("demo model", "demo_recipe:train", 3600)
PARTS = (*CHECKS, *SPEED, DEMO)


def main(argv: Sequence[str] | None = None) -> None:
    started = time.time()
    config = parse(Config, argv, __doc__)
    device = pick_device(config.device).type
    if device != "cuda" and not config.rehearse:
        raise UserError(
            f"this measures a GPU, and the device here is {device}. To try all parts on it at tiny "
            "sizes, add --rehearse."
        )
    chosen = choose_parts(config)
    config.out.mkdir(parents=True, exist_ok=True)
    Benchmark(config, chosen, device, started).run()


def choose_parts(config: Config) -> list[BenchmarkPart]:
    """List the parts that `only` and `without` leave.

    Raises:
        UserError: they leave none.
    """
    chosen = [
        part
        for part in PARTS
        if (not config.only or any(word in part.name for word in config.only))
        and not any(word in part.name for word in config.without)
    ]
    if not chosen:
        names = ", ".join(part.name for part in PARTS)
        raise UserError(f"--only and --without leave no part. The parts are: {names}.")
    return chosen


@dataclass
class Running:
    """A part that runs."""

    part: BenchmarkPart
    job: Job
    process: "subprocess.Popen[bytes]"
    started: float


class Benchmark:
    """All parts, one after the other, and what they found."""

    def __init__(
        self, config: Config, chosen: Sequence[BenchmarkPart], device: str, started: float
    ):
        self.config, self.chosen, self.device = config, chosen, device
        self.ends_at = started + 60 * config.minutes - RESERVE
        self.folder = Path(tempfile.mkdtemp(prefix="gpu-"))
        self.results: dict[str, Any] = {"minutes": config.minutes, "rehearsal": config.rehearse}
        self.results |= {"command": sys.argv, "parts": {}}

    def run(self) -> None:
        log = (self.config.out / "gpu.log").open("wb")
        try:
            checks = [part for part in self.chosen if part in CHECKS]
            while checks:
                self.run_together(checks[:AT_ONCE], log)
                checks = checks[AT_ONCE:]
            for part in self.chosen:
                if part not in CHECKS:
                    self.run_together([part], log)
        finally:
            log.close()
            shutil.rmtree(self.folder, ignore_errors=True)
        print(f"the results are in {self.config.out / 'gpu.md'} and gpu.json.")

    def run_together(self, parts: Sequence[BenchmarkPart], log: Any) -> None:
        """Run parts at the same time until all have ended."""
        running: list[Running] = []
        try:
            for part in parts:
                reason = self.reason_to_skip(part)
                if reason:
                    self.note(part, "skipped", 0.0, {}, reason)
                else:
                    running.append(self.start(part, log))
            while running:
                time.sleep(0.1)
                for each in list(running):
                    status = each.process.poll()
                    if status is None and time.time() < each.job.ends_at:
                        continue
                    running.remove(each)
                    end(each.process)
                    self.finish(each, status)
        finally:
            for each in running:  # after a signal
                end(each.process)
                self.finish(each, None)

    def reason_to_skip(self, part: BenchmarkPart) -> str | None:
        left = self.ends_at - time.time()
        reserved = 0.0 if part in (DEMO, *CHECKS) else 60 * self.config.demo_minutes
        if left - reserved < SHORTEST:
            return "no time was left"
        if part.needs_diffusers and not has_diffusers():
            return "diffusers is not installed"
        return None

    def start(self, part: BenchmarkPart, log: Any) -> Running:
        started = time.time()
        factor = REHEARSAL_FACTOR if self.config.rehearse else 1
        reserved = 0.0 if part is DEMO else 60 * self.config.demo_minutes
        number = len(list(self.folder.iterdir()))
        folder = self.folder / f"part-{number}"
        folder.mkdir()
        data = self.config.data if (self.config.data / "metadata.jsonl").is_file() else None
        job = Job(
            part=part.function,
            device=self.device,
            rehearse=self.config.rehearse,
            ends_at=min(started + factor * part.seconds, self.ends_at - reserved),
            folder=str(folder),
            out=str(self.config.out.absolute()),
            data=None if data is None or self.config.rehearse else str(data.absolute()),
            demo_preset=self.config.demo_preset,
        )
        command = [sys.executable, "-m", "benchmarks.gpu_parts.worker", job.to_json()]
        log.write(f"\n===== {part.name} =====\n".encode())
        log.flush()
        print(f"{part.name} ...", flush=True)
        settings = {"OMP_NUM_THREADS": "1"} if self.config.rehearse else {}
        if part.name.startswith("check"):  # which share the cores, and have little to compile
            settings["TORCHINDUCTOR_COMPILE_THREADS"] = "2"
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | settings,
            start_new_session=True,  # so that its own processes can be ended with it
        )
        return Running(part, job, process, started)

    def finish(self, running: Running, status: int | None) -> None:
        seconds = time.time() - running.started
        records = read_records(running.job.records)
        errors = [f"{name}: {each['error']}" for name, each in records.items() if "error" in each]
        error = "; ".join(errors) or None
        if status is None:
            self.note(running.part, "not finished", seconds, records, error)
        elif status != 0:
            error = error or f"ended with status {status}"
            self.note(running.part, "failed", seconds, records, error)
        else:
            self.note(
                running.part, "failed in part" if errors else "passed", seconds, records, error
            )
        shutil.rmtree(running.job.folder, ignore_errors=True)
        Path(running.job.folder).mkdir()  # counted for the next name

    def note(
        self,
        part: BenchmarkPart,
        status: str,
        seconds: float,
        records: dict[str, Any],
        error: str | None,
    ) -> None:
        """Keep what a part found, and write the report anew."""
        result: dict[str, Any] = {"status": status, "seconds": seconds, "records": records}
        if error:
            result["error"] = error
        self.results["parts"][part.name] = result
        write_report(self.config.out, self.results)
        print(f"{part.name}: {status}, {seconds:.0f} s. {error or ''}", flush=True)


def has_diffusers() -> bool:
    from importlib.util import find_spec

    return find_spec("diffusers") is not None


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and those that it started."""
    if os.name != "posix":
        process.kill()
        process.wait()
        return
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        if process.poll() is None and sent == signal.SIGTERM:
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                continue
    process.wait()


if __name__ == "__main__":
    run_main(main, Config)
