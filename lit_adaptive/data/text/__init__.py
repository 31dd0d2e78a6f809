"""Text as tokens: chat templates, tokenization, packing, prompt sharing."""
