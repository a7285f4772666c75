"""What a sweep is to do, as plain data: cells, trials, plans, states. No Ray, MLflow or Optuna."""
