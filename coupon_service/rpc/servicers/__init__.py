"""One class a service of the contract: request in, response out."""
