"""The console command `latentsmith`, which runs the scripts by their names.

Nothing may import this package, and it imports none of the others but to run them.
"""
