"""Other people's protocols, so that their clients can ask: OpenAI's embeddings, the Open Inference Protocol."""
