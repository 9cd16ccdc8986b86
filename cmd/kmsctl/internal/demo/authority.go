package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// maxQuestion bounds what the webhook reads, in bytes: an event log is in it.
const maxQuestion = 1 << 20

// deniedReason is what the webhook says to an application that it does not know.
const deniedReason = "compose hash not allowed"

// authority is the webhook that decides in this demonstration who may have keys:
// each KMS, and the applications of one compose hash (docs/authz.md#webhook).
type authority struct {
	// allowed is the compose hash, hex.
	allowed string
	server  *http.Server
	url     string
	served  chan error
}

// startAuthority serves the webhook on a free port of the loopback address.
func startAuthority(ctx context.Context, allowed string) (*authority, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("finding a free port: %w", err)
	}
	a := &authority{allowed: allowed, url: "http://" + l.Addr().String(), served: make(chan error, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /bootAuth/app", a.decideApp)
	mux.HandleFunc("POST /bootAuth/kms", func(w http.ResponseWriter, _ *http.Request) { answer(w, decision{IsAllowed: true}) })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"status": "ok", "kmsContractAddr": "", "gatewayAppId": "any", "chainId": 0, "appImplementation": ""})
	})
	a.server = &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute,
	}
	go func() { a.served <- a.server.Serve(l) }()
	return a, nil
}

// decision is the answer of a webhook.
type decision struct {
	IsAllowed    bool   `json:"isAllowed"`
	Reason       string `json:"reason"`
	GatewayAppID string `json:"gatewayAppId"`
}

func (a *authority) decideApp(w http.ResponseWriter, r *http.Request) {
	var question struct {
		ComposeHash string `json:"composeHash"`
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxQuestion))
	if err == nil {
		err = json.Unmarshal(body, &question)
	}
	switch {
	case err != nil:
		http.Error(w, "not a question", http.StatusBadRequest)
	case question.ComposeHash != a.allowed:
		answer(w, decision{Reason: deniedReason})
	default:
		answer(w, decision{IsAllowed: true, GatewayAppID: "any"})
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the KMS may be gone
}

// stop ends the webhook.
func (a *authority) stop() error {
	err := a.server.Close()
	if served := <-a.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
