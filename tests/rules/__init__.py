"""Rules of the hot loop: what one training step may make a GPU do."""
