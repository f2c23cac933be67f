"""The networks: retriever, multimodal LLM, reranker, generator. The only home of torch."""
