"""Who holds a suspicious model and asks: is it backdoored, for which class, by which words? The parts of the scan."""
