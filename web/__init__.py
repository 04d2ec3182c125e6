"""The web page of app.py: its tabs, what they call, and what protects the server.

It may import everything but the scripts, and nothing imports it but app.py.
"""
