"""Networks and endpoints: namespaces, the bridge, addresses, published ports, names. Answers with Endpoint values."""
