"""What the three trainings do per step and at every look; train_*.py are their command lines."""
