"""Second-order methods that watch the layers: K-FAC and, for tiny models, the exact natural gradient."""
