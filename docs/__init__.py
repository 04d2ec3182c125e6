"""The pages, and the programs that make parts of them; nothing may import this package."""
