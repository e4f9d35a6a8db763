"""What a person looks at: picture grids, a page of numbers, tables for a terminal."""

from mpsearch.report.grid import save_grid
from mpsearch.report.page import beside, describe, gains, notes, page
from mpsearch.report.scatter import save_scatter

__all__ = ["beside", "describe", "gains", "notes", "page", "save_grid", "save_scatter"]
