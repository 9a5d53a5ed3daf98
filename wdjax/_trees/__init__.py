"""What comes in: leaves and their names, kinds, axes and places; checks of arguments."""
