"""The only package that knows Ray: the cluster, the trainable, and the loop over events."""
