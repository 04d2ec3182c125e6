# make demo        from a fresh machine to a picture, by the weights in checkpoints/demo; then train-demo
# make train-demo  from a fresh machine to a model of your own: data, three trainings, sixteen prompts
# make test        from a fresh machine to a green test run: lint, then the tests
# make lint        style and types: ruff check, ruff format, pyright
# make format      rewrite the code in the project's format
# make coverage    the tests, and the lines and branches that none of them runs
# Needs Python 3.11 or newer with its venv module; everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
DATA := data/openmoji
RUNS := runs/demo
# Processes that run tests at the same time; one thread each, so that they do not wait for each other.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo train-demo test lint format coverage clean

demo: .venv/ready
	$(BIN)/python sample.py --prompts docs/demo-prompts.txt --model checkpoints/demo \
		--out samples/shipped --grid
	@echo "The model in checkpoints/demo made these pictures. Now a model of your own is trained."
	@echo "The three trainings take about 15 minutes on two cores and start in 10 seconds."
	@echo "Press Ctrl-C to stop here. 'make train-demo' starts them later, or continues them."
	@sleep 10
	$(MAKE) train-demo

train-demo: .venv/ready $(DATA)/metadata.jsonl
	$(BIN)/python check.py $(DATA) --context-length 24
	$(BIN)/python train_clip.py --preset demo --data $(DATA) --out $(RUNS)/clip
	$(BIN)/python train_vae.py --preset demo --data $(DATA) --out $(RUNS)/vae
	$(BIN)/python train_ldm.py --preset demo --data $(DATA) --out $(RUNS)/ldm \
		--vae $(RUNS)/vae --text-encoder $(RUNS)/clip
	$(BIN)/python sample.py --prompts docs/demo-prompts.txt --model $(RUNS)/ldm \
		--out samples/demo --grid

test: .venv/ready lint
	$(PYTEST)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

coverage: .venv/ready
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(DATA)/metadata.jsonl: .venv/ready
	$(BIN)/python recipes/openmoji.py $(DATA)

.venv/ready: setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[train,recipes,test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
