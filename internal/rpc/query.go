package rpc

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strings"

	"connectrpc.com/connect"
)

var errNotBase64 = errors.New("query: message is not URL-safe base64")

// CheckQuery refuses a Connect GET whose message is not the base64 that it says
// it is. Connect itself takes that for an internal error.
func CheckQuery(next http.Handler) http.Handler {
	refusal := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.RawQuery, "base64=1") && !base64Query(r) {
			_ = refusal.Write(w, r, connect.NewError(connect.CodeInvalidArgument, errNotBase64)) // the client may be gone
			return
		}
		next.ServeHTTP(w, r)
	})
}

// base64Query tells whether the message in the query of r is base64, with or
// without padding.
func base64Query(r *http.Request) bool {
	message := strings.TrimRight(r.URL.Query().Get("message"), "=")
	_, err := base64.RawURLEncoding.DecodeString(message)
	return err == nil
}
