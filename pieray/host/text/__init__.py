"""Text work off the guests' thread: tokenizing, chat, grammars."""
