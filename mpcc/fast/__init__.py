"""Code for speed alone; each part has a plain counterpart, and a test that both agree."""
