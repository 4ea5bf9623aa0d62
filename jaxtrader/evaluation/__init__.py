"""What a policy earned, and how sure one can be of it."""
