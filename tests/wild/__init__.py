"""What people bring: inputs as public reports have them, tried through the real commands; each made by its test."""
