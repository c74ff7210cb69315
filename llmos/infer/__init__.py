"""Generation: engines that turn prompts into tokens, and what they are asked with. Nothing here knows HTTP or Ray."""
