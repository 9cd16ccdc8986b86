package webhook

import (
	"fmt"

	"teekms/internal/authz"
	"teekms/internal/authz/strictjson"
)

// parseDecision reads an answer: isAllowed, gatewayAppId and reason, each there
// exactly once and of its type. Other members are skipped.
func parseDecision(answer []byte) (authz.Decision, error) {
	o, err := strictjson.Parse(answer, "isAllowed", "gatewayAppId", "reason")
	if err != nil {
		return authz.Decision{}, malformed(err)
	}
	allowed, err := o.Bool("isAllowed")
	if err != nil {
		return authz.Decision{}, malformed(err)
	}
	gateway, err := o.Text("gatewayAppId")
	if err != nil {
		return authz.Decision{}, malformed(err)
	}
	reason, err := o.Text("reason")
	if err != nil {
		return authz.Decision{}, malformed(err)
	}
	if err := authz.CheckGatewayAppID(gateway); err != nil {
		return authz.Decision{}, malformed(err)
	}
	return authz.Decision{Allowed: allowed, Reason: authz.PublicReason(reason), GatewayAppID: gateway}, nil
}

func malformed(err error) error {
	return fmt.Errorf("%w: %w", authz.ErrMalformed, err)
}

// parseFacts reads what the service says of itself. A member that is missing or
// of another type is empty: nothing is decided by it.
func parseFacts(answer []byte) (authz.Facts, error) {
	o, err := strictjson.Parse(answer, "kmsContractAddr", "gatewayAppId", "chainId", "appImplementation", "appAuthImplementation", "ethRpcUrl")
	if err != nil {
		return authz.Facts{}, fmt.Errorf("reading facts: %w", malformed(err))
	}
	text := func(name string) string {
		v, err := o.Text(name)
		if err != nil {
			return ""
		}
		return authz.PublicReason(v)
	}
	f := authz.Facts{
		GatewayAppID:      text("gatewayAppId"),
		ContractAddress:   text("kmsContractAddr"),
		AppImplementation: text("appImplementation"),
		EthRPCURL:         text("ethRpcUrl"),
	}
	if f.AppImplementation == "" {
		f.AppImplementation = text("appAuthImplementation")
	}
	if id, err := o.Uint64("chainId"); err == nil {
		f.ChainID = id
	}
	return f, nil
}
