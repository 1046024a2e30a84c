"""The forms of a data set, one reader each."""
