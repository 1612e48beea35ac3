"""The commands, a module each: their arguments, and their work.

Nothing heavy is imported before a command needs it.
"""
