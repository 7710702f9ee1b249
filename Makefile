# Everything that a contributor runs; CONTRIBUTING.md explains when.
.PHONY: test slow lint docs bench

test:  ## minutes
	python -m pytest

slow:  ## all tests, with chaos, fuzzing, the wheel and the documentation
	python -m pytest --slow

lint:
	ruff check .
	ruff format --check .
	mypy
	lint-imports

docs:  ## build/site
	python -m mkdocs build --strict

bench:  ## speed of a zoo build and of a training step, as a ratio to the plain way in tools/reference.py
	python tools/bench.py zoo step
