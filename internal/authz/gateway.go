package authz

import (
	"errors"
	"fmt"
)

// MaxGatewayAppIDSize bounds a gateway's app id in bytes. It is 40 hex digits,
// "any", or a name.
const MaxGatewayAppIDSize = 256

// CheckGatewayAppID says whether an authority's gateway app id can be handed on:
// bounded, printable ASCII. It may be empty.
func CheckGatewayAppID(id string) error {
	if len(id) > MaxGatewayAppIDSize {
		return fmt.Errorf("gateway app id of %d bytes, want at most %d", len(id), MaxGatewayAppIDSize)
	}
	for i := range len(id) {
		if id[i] < ' ' || id[i] > '~' {
			return errors.New("gateway app id is not printable ASCII")
		}
	}
	return nil
}
