"""What every training shares: run folder, loop, saved state, ranks, EMA, logging, tools.

It knows neither autoencoders nor diffusion, and imports no other package than foundation.
"""
