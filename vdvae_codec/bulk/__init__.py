"""Many images, in folders or on object stores: ``inputs`` are cut into pieces, ``jobs`` do one, ``run`` does all."""
