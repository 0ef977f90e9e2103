"""WHERE it meets Lightning: the only room that knows hooks and strategies."""
