"""The fair comparison of arms on the user's own module: same weights, data, budget and tuning for each."""
