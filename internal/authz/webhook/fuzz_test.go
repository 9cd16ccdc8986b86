package webhook_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"

	"teekms/internal/authz"
	"teekms/internal/authz/webhook"
)

func FuzzDecision(f *testing.F) {
	f.Add([]byte(allow))
	f.Add([]byte(`{"isAllowed":"true","gatewayAppId":"","reason":""}`))
	f.Add([]byte(`{"isAllowed":false,"isAllowed":true,"gatewayAppId":"\u001b","reason":"\ud800"}`))
	f.Add([]byte(`{"isallowed":true,"gatewayAppId":"","reason":null} {}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		d, err := webhook.ParseDecision(answer)
		if err != nil {
			if (d != authz.Decision{}) || !errors.Is(err, authz.ErrMalformed) || errors.Is(err, authz.ErrUnreachable) {
				t.Errorf("parseDecision(%q) = %+v, %v, want no decision and %v", answer, d, err, authz.ErrMalformed)
			}
			return
		}
		if len(d.Reason) > authz.MaxReasonSize || strings.ContainsFunc(d.Reason+d.GatewayAppID, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("parseDecision(%q) = %+v, want what can be printed", answer, d)
		}
		// Whatever was understood is what a plain reader sees: nothing allows
		// that does not say true under that very name.
		var plain map[string]any
		if err := json.Unmarshal(answer, &plain); err != nil || plain["isAllowed"] != d.Allowed || plain["gatewayAppId"] != d.GatewayAppID {
			t.Errorf("parseDecision(%q) = %+v, want %v, %v", answer, d, plain, err)
		}
	})
}

func FuzzFacts(f *testing.F) {
	f.Add([]byte(`{"status":"ok","kmsContractAddr":"0xab","gatewayAppId":"any","chainId":8453,"appImplementation":"0xcd"}`))
	f.Add([]byte(`{"chainId":-1,"ethRpcUrl":"\n"}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		facts, err := webhook.ParseFacts(answer)
		if err != nil && (facts != authz.Facts{}) {
			t.Errorf("parseFacts(%q) = %+v, %v, want no facts", answer, facts, err)
		}
		for _, text := range []string{facts.ContractAddress, facts.GatewayAppID, facts.AppImplementation, facts.EthRPCURL} {
			if len(text) > authz.MaxReasonSize || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("parseFacts(%q) = %+v, want what can be printed", answer, facts)
			}
		}
	})
}
