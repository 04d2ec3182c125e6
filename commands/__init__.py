"""What each script does once its command line is read: one module for each, of the same name.

`commands/flags/` has the flags of those that are not in stages/flags/. Only the scripts import
this package, after parsing; what they import at their top must not import torch.
"""
