package record

import "teekms/internal/attest/versioned"

// splitAttestation takes quote and event log out of what a newer peer has in
// their place.
func splitAttestation(wire []byte) (quote, eventLog []byte, err error) {
	a, err := versioned.Parse(wire)
	if err != nil {
		return nil, nil, err
	}
	ev, err := a.Evidence()
	if err != nil {
		return nil, nil, err
	}
	return ev.Quote, ev.EventLog, nil
}
