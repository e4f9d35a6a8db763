"""Figures of the documents: each script prints what it measured, with the machine and the versions."""
