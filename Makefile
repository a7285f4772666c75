# make ablation   install, run the main sweep on real digits, print its table
# make test       install, check style and types, run every test
# make test-cluster  two Ray nodes, S3, MLflow on PostgreSQL, all on this machine
# make lint       style and types
# make benchmark  every figure that is quoted: the step, the sweep, the tables, their statistics
# make faults     every fault that a sweep must survive, as often as stated (half an hour on two cores);
#                 ROWS=sigint,raylet-killed some of them, ARGS=--again those too that have passed

PYTHON ?= python3
BIN := .venv/bin
# What other rooms call: no untyped value passes there.
STRICT := tune/plan tune/store tune/suggest tune/engine/spec.py tune/engine/engine.py tune/engine/loop.py

.PHONY: ablation test test-cluster lint benchmark faults

ablation: .venv/installed
	$(BIN)/python tune/ablation.py --grid esteps,eta_p
	$(BIN)/python analysis/make_tables.py

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-cluster: .venv/installed
	@echo "Needs PostgreSQL's server programs (apt-get install postgresql) and, to hide the code" \
	"from the nodes, unshare; some minutes, fifteen on two busy cores."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-r requirements-cluster.txt -c constraints.txt
	$(BIN)/python -m pytest -m cluster tests/test_cluster.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict --disallow-any-explicit --follow-imports=silent $(STRICT)

benchmark: .venv/installed
	@for name in speed tables_speed statistics_simulation; do \
	$(BIN)/python benchmarks/$$name.py || exit 1; echo; done

faults: .venv/installed
	$(BIN)/python benchmarks/faults.py $(if $(ROWS),--rows "$(ROWS)") $(ARGS)

.venv/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " \
	+ sys.version.split()[0] + ": make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv: about 5 GB, a few minutes, once."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-r requirements.txt -c constraints.txt
	@$(BIN)/python -W error -c "import torch, torchvision, pytorch_fid.inception, ray.tune; \
	print('torch', torch.__version__, 'torchvision', torchvision.__version__, 'import together')"
	@touch $@
