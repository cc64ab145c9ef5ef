"""Parts of the command that trains `lantern`, one idea a file; the order of use is that of `train_lantern.py`."""
