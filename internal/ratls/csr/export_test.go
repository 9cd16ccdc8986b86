package csr

// Marshal2 writes version 2 with an attestation that need not be one.
func (r *Request) Marshal2(attestation []byte) ([]byte, error) { return r.marshal2(attestation) }
