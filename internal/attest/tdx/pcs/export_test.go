package pcs

// DecodeChain and DecodeCRL are the decoders of what a service answers.
var (
	DecodeChain = decodeChain
	DecodeCRL   = decodeCRL
)
