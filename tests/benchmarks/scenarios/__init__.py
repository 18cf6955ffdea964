"""The speed scenarios S1 to S8: each returns its measurements and says which targets they meet."""
