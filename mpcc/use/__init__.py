"""Use a trained model: clusters, encodings, samples and reconstructions."""
