"""Gold values: every operation and layer as plain Python loops in float64.

Written from the formulas, index by index, sharing nothing with gpulayers: no window object, no
im2col, no broadcasting. Arrays serve as containers only. Slow on purpose; use small shapes.
"""
