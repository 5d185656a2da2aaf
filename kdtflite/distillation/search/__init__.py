"""`losses="auto"`: candidates, trials and the choice among them."""
