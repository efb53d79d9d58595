"""Who holds a suspicious model and asks: is it backdoored, for which class, by which words?"""
