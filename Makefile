# make demo        from a fresh machine to a picture, by the weights in checkpoints/demo; then train-demo
# make train-demo  from a fresh machine to a model of your own: data, three trainings, sixteen prompts
# make test        from a fresh machine to a green test run
# Needs Python 3.11 or newer with its venv module; everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
DATA := data/openmoji
RUNS := runs/demo

.PHONY: demo train-demo test lint format clean

demo: .venv/ready
	$(BIN)/python sample.py --prompts docs/demo-prompts.txt --model checkpoints/demo \
		--out samples/shipped --grid
	@echo "That was the model in checkpoints/demo. Now one of your own, from nothing: three trainings"
	@echo "of a quarter of an hour in all on two cores, beginning in 10 seconds. Ctrl-C leaves it at"
	@echo "that; make train-demo starts it later, or goes on where it stopped."
	@sleep 10
	$(MAKE) train-demo

train-demo: .venv/ready $(DATA)/metadata.jsonl
	$(BIN)/python check.py $(DATA) --tokens 24
	$(BIN)/python train_clip.py --preset demo --data $(DATA) --out $(RUNS)/clip
	$(BIN)/python train_vae.py --preset demo --data $(DATA) --out $(RUNS)/vae
	$(BIN)/python train_ldm.py --preset demo --data $(DATA) --out $(RUNS)/ldm \
		--vae $(RUNS)/vae --text-encoder $(RUNS)/clip
	$(BIN)/python sample.py --prompts docs/demo-prompts.txt --model $(RUNS)/ldm \
		--out samples/demo --grid

test: .venv/ready lint
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
