"""From the DataFrame of trials to laid-out tables: groups, comparisons, grids."""
