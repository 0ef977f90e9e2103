"""One file a theme, each with a tuple `CHECKS`; `lit_opt.preflight.check` runs them all."""
