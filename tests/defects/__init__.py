"""One test or more for each of the 45 known defects of numpy-ml's neural nets.

`@pytest.mark.defect(7)` names the row of the table "Defects of numpy-ml that are mended here" in
docs/porting_from_numpy_ml.md. Each test is named after what is right; its docstring says what
numpy-ml does for the same call, and its assertion fails on that. The wrong numbers were written
down from runs of numpy-ml itself (the release 0.1.2, with the later changes to its activations,
initializers and `set_params`), on the same inputs; the right ones are worked out by hand or by a
few lines of scalar arithmetic. `test_table.py` holds tests and table together.
"""
