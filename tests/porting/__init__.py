"""What was trained with numpy-ml goes on here.

`numpy_ml_summaries.npz` holds numbers that numpy-ml itself computed, in float64: for each of its
layers and modules, after some training steps, its `summary()`, an input, the output, a gradient,
the gradients that came of it, and the parameters after one more update. (Cells and modules cannot
train twice in numpy-ml: theirs is one step, carried over to a fresh object.) `cases` is JSON, in
which an array is its offset, shape and dtype in the one long array `numbers`.
"""
