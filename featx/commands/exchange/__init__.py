"""Features files into other formats, and several into one."""
