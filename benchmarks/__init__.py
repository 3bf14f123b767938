"""How fast the program is, beside an eager PyTorch counterpart."""
