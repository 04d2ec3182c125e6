"""Marks of tests that start the page."""

import pytest

# Gradio takes many seconds to load, and leaves sockets and loops open.
STARTS_PAGE = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
