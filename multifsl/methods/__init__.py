"""The methods: one file each, found by the registry under its file name."""
