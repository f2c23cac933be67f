"""The recipe of the mini models in the package."""
