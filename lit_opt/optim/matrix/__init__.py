"""One engine for the Muon family: estimate the gradient, momentum, precondition, normalise, scale, decay and apply.

Each method is a short file that names its stages: muon, normuon, mars_m, teon, scion, aro. The engine is in `engine`.
"""
