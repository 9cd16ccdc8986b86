package webhook

// ParseDecision and ParseFacts let fuzz tests read without a server.
var (
	ParseDecision = parseDecision
	ParseFacts    = parseFacts
)
