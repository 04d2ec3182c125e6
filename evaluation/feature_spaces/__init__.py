"""Networks that turn images into features, as other libraries or files of the user give them.

Nothing here is downloaded; no file here knows the data, and all must import foundation/ and
interop/ alone.
"""
