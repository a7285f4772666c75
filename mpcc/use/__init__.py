"""Using what was trained: clusters, encodings, samples and reconstructions of a finished trial."""
