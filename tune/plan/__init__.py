"""The plan of a sweep as plain data: cells, trials, plans, states. No Ray, MLflow or Optuna."""
