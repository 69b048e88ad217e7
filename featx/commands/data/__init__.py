"""Commands that look at data sets: suspects, clean."""
