"""Put the scripts, which lie next to the packages, into the package `latentsmith` of a wheel."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SCRIPTS = ("check", "train_clip", "train_vae", "train_ldm", "sample", "evaluate", "export", "app")


class BuildWithScripts(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # the command finds them in the checkout
        for name in SCRIPTS:
            target = Path(self.build_lib, "latentsmith", f"{name}.py")
            self.copy_file(f"{name}.py", str(target))


if __name__ == "__main__":  # also when pip runs it
    setup(cmdclass={"build_py": BuildWithScripts})
