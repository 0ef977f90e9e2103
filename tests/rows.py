"""Which registry rows take part in a test of all of them."""

from lit_opt.optim import get_row, list_optimizers

# torchao compiles a step for each shape, half a minute each on a CPU: tests/optim/test_low_bit.py, marked slow.
HERE = [name for name in list_optimizers() if not get_row(name).compiles]
# Rounding alone stands between these and their rule.
EXACT = [name for name in HERE if get_row(name).exact]
# These need nothing but parameters and lr.
ALONE = [name for name in EXACT if not (get_row(name).needs_module or get_row(name).exchanges)]
