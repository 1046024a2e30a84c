"""Attachments to any method: each adds a term to the losses of the method that it wraps."""
