"""One check for each trap of freezing: a function of a peer that trains for real and returns a verdict."""
