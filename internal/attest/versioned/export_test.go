package versioned

// Marshal1 writes version 1 whatever the events are.
func (a *Attestation) Marshal1() []byte { return a.marshal1() }
