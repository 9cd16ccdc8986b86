// Package guestagenttest plays dstack guest agents of different ages on a unix
// socket, over a software trust domain. It is for tests.
package guestagenttest

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/versioned"
)

// Generation is the age of an agent.
type Generation int

// The generations that differ in their methods.
const (
	// Current answers Attest, and GetQuote with a stripped log.
	Current Generation = iota
	// WithoutAttest is an agent before 0.5.6.
	WithoutAttest
	// Tappd is the agent's predecessor, under /prpc/.
	Tappd
)

// Handler answers as an agent of generation g in the guest td.
func Handler(td *simtd.TD, g Generation) http.Handler {
	a := agent{td}
	mux := http.NewServeMux()
	if g == Tappd {
		mux.HandleFunc("POST /prpc/Tappd.RawQuote", answer(a.rawQuote))
		mux.HandleFunc("POST /prpc/Tappd.Info", answer(a.info))
		return mux
	}
	if g == Current {
		mux.HandleFunc("POST /Attest", answer(a.attest))
	}
	mux.HandleFunc("POST /GetQuote", answer(func(r request) (any, error) { return a.getQuote(r, g == Current) }))
	mux.HandleFunc("POST /Info", answer(a.info))
	mux.HandleFunc("POST /GetKey", answer(a.getKey))
	return mux
}

// Listen serves h on a unix socket until the test ends, and returns its path.
func Listen(tb testing.TB, h http.Handler) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "agent.sock")
	l, err := new(net.ListenConfig).Listen(tb.Context(), "unix", path)
	if err != nil {
		tb.Fatalf("Listen(%q) = %v", path, err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // ends with Close
	}()
	tb.Cleanup(func() {
		if err := server.Close(); err != nil {
			tb.Errorf("closing the agent = %v", err)
		}
		<-done
	})
	return path
}

type request struct {
	ReportData string `json:"report_data"`
	Path       string `json:"path"`
	Purpose    string `json:"purpose"`
	Algorithm  string `json:"algorithm"`
}

// answer reads and writes JSON as prpc does, errors as 400.
func answer(f func(request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req request
		var out any
		err := json.NewDecoder(r.Body).Decode(&req)
		if _, asked := r.URL.Query()["json"]; err == nil && !asked {
			err = fmt.Errorf("this agent speaks only JSON")
		}
		if err == nil {
			out, err = f(req)
		}
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			out = map[string]string{"error": err.Error()}
		}
		_ = json.NewEncoder(w).Encode(out) // a client that left is no concern
	}
}

type agent struct{ td *simtd.TD }

// reportData pads as the agent does.
func (r request) reportData() (rd [64]byte, n int, err error) {
	b, err := hex.DecodeString(r.ReportData)
	if err != nil {
		return rd, 0, fmt.Errorf("invalid hex: %w", err)
	}
	if len(b) > len(rd) {
		return rd, 0, fmt.Errorf("Report data is too long") //nolint:staticcheck // the agent's own words
	}
	return rd, copy(rd[:], b), nil
}

func (a agent) attest(r request) (any, error) {
	rd, _, err := r.reportData()
	if err != nil {
		return nil, err
	}
	quote, err := a.td.Quote(rd, simtd.Shape{})
	if err != nil {
		return nil, err
	}
	log, err := a.td.EventLog().Marshal()
	if err != nil {
		return nil, err
	}
	v, err := versioned.New(&attest.Evidence{Quote: quote, EventLog: log, VMConfig: a.td.VMConfig()})
	if err != nil {
		return nil, err
	}
	v.Quote = append(v.Quote, make([]byte, 70)...) // padding, as a host leaves it
	b, err := v.Marshal()
	if err != nil {
		return nil, err
	}
	return map[string]string{"attestation": hex.EncodeToString(b)}, nil
}

func (a agent) getQuote(r request, stripped bool) (any, error) {
	rd, _, err := r.reportData()
	if err != nil {
		return nil, err
	}
	quote, err := a.td.Quote(rd, simtd.Shape{})
	if err != nil {
		return nil, err
	}
	events := a.td.EventLog()
	if stripped {
		strip(events)
	}
	log, err := events.Marshal()
	if err != nil {
		return nil, err
	}
	return map[string]string{
		"quote": hex.EncodeToString(quote), "event_log": string(log),
		"report_data": r.ReportData, "vm_config": a.td.VMConfig(),
	}, nil
}

// strip leaves boot events their digest and runtime events their payload.
func strip(events eventlog.Log) {
	for i := range events {
		e := &events[i]
		switch {
		case e.Runtime():
			e.Digest = nil
		case string(e.Payload) != "ACPI DATA":
			e.Payload = nil
		}
	}
}

func (a agent) rawQuote(r request) (any, error) {
	_, n, err := r.reportData()
	if err != nil {
		return nil, err
	}
	if n != 64 {
		return nil, fmt.Errorf("report data of %d bytes, want 64", n)
	}
	out, err := a.getQuote(r, false)
	if err != nil {
		return nil, err
	}
	m, _ := out.(map[string]string)
	delete(m, "vm_config")
	delete(m, "report_data")
	m["hash_algorithm"], m["prefix"] = "raw", ""
	return m, nil
}

func (a agent) info(request) (any, error) {
	m := a.td.Measurements()
	return map[string]string{
		"app_id": hex.EncodeToString(m.AppID), "instance_id": hex.EncodeToString(m.InstanceID),
		"compose_hash": hex.EncodeToString(m.ComposeHash), "os_image_hash": hex.EncodeToString(m.OSImageHash),
		"vm_config": a.td.VMConfig(), "tcb_info": "{}", "app_name": "test",
	}, nil
}
