"""Tables of image-text pairs as people keep them: parquet, Arrow, CSV, JSON. It must not import
`dataset.folder`, and pyarrow only where a file needs it.
"""
