"""What every training shares: run folder, loop, state, EMA. Knows neither VAE nor diffusion."""
