package record

import "errors"

func splitAttestation([]byte) (quote, eventLog []byte, err error) {
	return nil, nil, errors.New("not supported")
}
