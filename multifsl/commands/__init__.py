"""The commands, a file a family. Heavy modules are imported inside them, so that `--help` is immediate."""
