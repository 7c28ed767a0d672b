"""The commands of pi05ctl."""
