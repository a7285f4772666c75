"""The only package of `tune` that knows Optuna: search space, points and study."""
