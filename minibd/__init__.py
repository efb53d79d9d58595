"""minibd: NLP backdoor mitigation, written out so that each equation can be read beside its paper."""

__version__ = "0.5.0"
