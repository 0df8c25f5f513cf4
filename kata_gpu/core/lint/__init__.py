"""Rules for pods and claims of confidential GPUs; the same table renders the admission policies."""
