"""Model packages, predictors, training: turns feature matrices into scores."""
