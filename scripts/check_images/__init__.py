"""Builds both images on stand-in bases and walks the user's road through them; what ``make images`` runs."""
