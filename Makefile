# make demo        from a fresh machine to a picture, by the weights in checkpoints/demo; then train-demo
# make train-demo  from a fresh machine to a model of your own: data, three trainings, sixteen prompts
# make test        from a fresh machine to a green test run: lint, then the tests
# make lint        style and types: ruff check, ruff format, pyright
# make format      rewrite the code in the project's format
# make coverage    the tests, and the lines and branches that none of them runs
# make clean       remove the environment and what tools left
# run.py does all of it, also where there is no make: python run.py test

# Python 3.11 or newer with its venv module.
PYTHON ?= python3
# Processes that run tests at the same time.
WORKERS ?= 2

TARGETS := demo train-demo test lint format coverage install clean
.PHONY: $(TARGETS)

$(TARGETS):
	@$(PYTHON) run.py $@ --workers $(WORKERS)
