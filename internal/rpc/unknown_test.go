package rpc_test

import (
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protowire"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/gen/onboard/v1/onboardv1connect"
	"teekms/internal/rpc"
)

// TestUnknownFields are those of newer clients, and taken, unless a service
// refuses them.
func TestUnknownFields(t *testing.T) {
	chain, err := rpc.New(rpc.Config{Log: zap.NewNop(), Access: rpc.Access{onboardv1connect.OnboardBootstrapProcedure: nil}})
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		more         []connect.HandlerOption
		json, binary string
	}{
		"taken":   {},
		"refused": {[]connect.HandlerOption{rpc.RefuseUnknown()}, `unknown field \"later\"`, "request body: unknown field 99"},
	} {
		t.Run(name, func(t *testing.T) {
			_, h := onboardv1connect.NewOnboardHandler(service{}, append(chain.Options(nil), tt.more...)...)
			s := httptest.NewServer(chain.Wrap(h))
			defer s.Close()
			for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
				res, err := s.Client().Post(s.URL+onboardv1connect.OnboardBootstrapProcedure, contentType, strings.NewReader(`{"domain":"a.b","later":{"a":[1]}}`))
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				if res.Body.Close(); err != nil {
					t.Fatal(err)
				}
				wantTaken(t, contentType, string(body), tt.json)
			}
			req := &onboardv1.BootstrapRequest{Domain: "a.b"}
			req.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
			for protocol, options := range protocols() {
				if protocol == "connect json" || protocol == "grpc" { // JSON has no such fields; gRPC wants HTTP/2
					continue
				}
				_, err := onboardv1connect.NewOnboardClient(s.Client(), s.URL, options...).Bootstrap(t.Context(), req)
				text := ""
				if err != nil {
					text = err.Error()
				}
				wantTaken(t, protocol, text, tt.binary)
			}
		})
	}
}

// wantTaken looks for what an answer is to say where it is a refusal.
func wantTaken(t *testing.T, what, text, refusal string) {
	t.Helper()
	if refused := strings.Contains(text, "invalid_argument"); refused != (refusal != "") || !strings.Contains(text, refusal) {
		t.Errorf("%s: answer = %s, want a refusal with %q: %t", what, text, refusal, refusal != "")
	}
}
