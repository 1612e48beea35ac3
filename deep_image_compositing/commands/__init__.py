"""The arguments and functions of the commands, which import heavy modules only when they run."""
