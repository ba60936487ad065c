"""Text models that answer chats, at an endpoint or in this process: teachers and judges."""
