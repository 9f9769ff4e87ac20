"""Ask your own Python: the text that every interpreter carries, read, measured, indexed and questioned."""
