"""Classical solvers and schedules, from the papers' formulas to tables."""
