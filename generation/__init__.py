"""What sample.py is made of: from options and prompt files to tasks, and from pictures to files."""
