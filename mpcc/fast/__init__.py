"""What is there for speed alone; each part has a plain twin, and a test that both agree."""
