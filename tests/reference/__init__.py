"""The papers as plain numpy loops, written from the papers and not from the modules."""
