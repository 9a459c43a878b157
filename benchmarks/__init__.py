"""Side-by-side measurements. Each module is a command that prints one table: `python -m benchmarks.serving`."""
