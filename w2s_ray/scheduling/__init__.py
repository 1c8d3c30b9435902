"""Ray lives here and only here: the order of packs, the Tune searcher, the Ray Train trainable, resources, progress."""
