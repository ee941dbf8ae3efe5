"""How fast multifsl is, beside its peers and beside what the machine can do: `make bench`, `python -m benchmarks --help`."""
