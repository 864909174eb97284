"""The Hub: what a push would send, the push, and the Hub's refusals in the user's terms."""
