package onchain

import "teekms/internal/authz"

// Pack returns the data of a call of isAppAllowed.
func Pack(b *authz.BootInfo) ([]byte, error) {
	parsed, err := parseABI()
	if err != nil {
		return nil, err
	}
	t, err := pack(b)
	if err != nil {
		return nil, err
	}
	return parsed.Pack(funcApp, t)
}

// Selector returns the first four bytes of a call's data.
func Selector(function string) ([]byte, error) {
	parsed, err := parseABI()
	if err != nil {
		return nil, err
	}
	return parsed.Methods[function].ID, nil
}

// ReadDecision reads what isAppAllowed and gatewayAppId returned.
func (a *Authorizer) ReadDecision(decision, gateway []byte) (authz.Decision, error) {
	return a.readDecision(funcApp, decision, gateway)
}
