package rpc_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"teekms/internal/rpc"
)

func TestWrongTokensAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		b := rpc.NewBearer(rpc.BearerConfig{Token: "right", Log: zap.New(core)})
		header := func(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }
		try := func(token, peer string, want error) {
			t.Helper()
			if err := b.Check(header(token), peer); err != want { //nolint:errorlint // the very value
				t.Errorf("Check(%s) from %s = %v, want %v", token, peer, err, want)
			}
		}
		for range 3 {
			try("wrong", "10.0.0.1:1", rpc.ErrWrongToken)
		}
		for _, peer := range []string{"10.0.0.1:2", "10.0.0.2:1"} {
			for _, token := range []string{"wrong", "right"} {
				try(token, peer, rpc.ErrTooManyTries)
			}
		}
		time.Sleep(time.Second)
		for range 2 {
			try("wrong", "10.0.0.1:1", rpc.ErrWrongToken)
		}
		try("right", "10.0.0.1:2", rpc.ErrTooManyTries) // it has guessed
		try("right", "10.0.0.2:1", nil)
		if err := b.Check(http.Header{}, "10.0.0.2:1"); err != rpc.ErrNoToken { //nolint:errorlint // the very value
			t.Errorf("Check without a token = %v, want %v", err, rpc.ErrNoToken)
		}
		time.Sleep(time.Second)
		try("right", "10.0.0.1:1", nil)
		try("right", "10.0.0.2:1", nil)
		lines := logs.FilterMessage("wrong bearer token").All()
		if len(lines) != 5 || lines[0].ContextMap()["peer"] != "10.0.0.1:1" {
			t.Errorf("%d lines %v, want 5 that name the peer", len(lines), lines)
		}
		for _, line := range logs.All() {
			for _, field := range line.Context {
				if strings.Contains(field.String, "wrong") || strings.Contains(field.String, "right") {
					t.Errorf("line %v holds a token", line)
				}
			}
		}
	})
}

func TestTokenGivenTwiceIsNone(t *testing.T) {
	b := rpc.NewBearer(rpc.BearerConfig{Token: "right"})
	err := b.Check(http.Header{"Authorization": {"Bearer right", "Bearer right"}}, "")
	if err != rpc.ErrNoToken { //nolint:errorlint // the very value
		t.Errorf("Check = %v, want %v", err, rpc.ErrNoToken)
	}
}

func TestRequire(t *testing.T) {
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "OK") })
	tests := []struct {
		name, token, header string
		status              int
		body                string
	}{
		{"off", "", "", 200, "OK"},
		{"missing", "right", "", 401, `{"error": "a bearer token is required"}`},
		{"wrong", "right", "Bearer x", 401, `{"error": "the bearer token is wrong"}`},
		{"right", "right", "Bearer right", 200, "OK"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := rpc.NewBearer(rpc.BearerConfig{Token: tt.token}).Require(next)
			req := httptest.NewRequest(http.MethodGet, "/finish", http.NoBody)
			req.Header.Set("Authorization", tt.header)
			res := httptest.NewRecorder()
			h.ServeHTTP(res, req)
			if res.Code != tt.status || res.Body.String() != tt.body {
				t.Errorf("answer = %d %s, want %d %s", res.Code, res.Body, tt.status, tt.body)
			}
			if got := res.Header().Get("WWW-Authenticate"); tt.status == 401 && got != "Bearer" {
				t.Errorf("WWW-Authenticate = %q, want Bearer", got)
			}
		})
	}
}

func TestCrossOrigin(t *testing.T) {
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Method) })
	h := rpc.CrossOrigin(next, "/finish")
	tests := []struct {
		name, method, path, header, value string
		want                              int
	}{
		{"curl", "POST", "/prpc/Onboard.Bootstrap", "", "", 200},
		{"own page", "POST", "/prpc/Onboard.Bootstrap", "Sec-Fetch-Site", "same-origin", 200},
		{"another site", "POST", "/prpc/Onboard.Bootstrap", "Sec-Fetch-Site", "cross-site", 403},
		{"another host of the site", "POST", "/prpc/Onboard.Bootstrap", "Sec-Fetch-Site", "same-site", 403},
		{"foreign origin", "POST", "/onboard.v1.Onboard/Bootstrap", "Origin", "http://evil.example", 403},
		{"own origin", "POST", "/onboard.v1.Onboard/Bootstrap", "Origin", "http://kms.example:9100", 200},
		{"opaque origin", "POST", "/onboard.v1.Onboard/Bootstrap", "Origin", "null", 403},
		{"foreign referer", "POST", "/onboard.v1.Onboard/Bootstrap", "Referer", "http://evil.example/x", 403},
		{"own referer", "POST", "/onboard.v1.Onboard/Bootstrap", "Referer", "http://kms.example:9100/", 200},
		{"unreadable referer", "POST", "/onboard.v1.Onboard/Bootstrap", "Referer", "http://[::1", 403},
		{"reading page of another site", "GET", "/", "Sec-Fetch-Site", "cross-site", 200},
		{"finish by curl", "GET", "/finish", "", "", 200},
		{"finish typed by hand", "GET", "/finish", "Sec-Fetch-Site", "none", 200},
		{"finish by another site", "GET", "/finish", "Sec-Fetch-Site", "cross-site", 403},
		{"finish by a link", "GET", "/finish", "Referer", "http://evil.example/", 403},
		{"finish by HEAD of another site", "HEAD", "/finish", "Sec-Fetch-Site", "cross-site", 403},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := httptest.NewRequest(tt.method, "http://kms.example:9100"+tt.path, http.NoBody)
			if tt.header != "" {
				req.Header.Set(tt.header, tt.value)
			}
			res := httptest.NewRecorder()
			h.ServeHTTP(res, req)
			if res.Code != tt.want {
				t.Errorf("status = %d, want %d", res.Code, tt.want)
			}
			body := res.Body.String()
			if tt.want == 403 && body != `{"error": "cross-origin request refused"}` {
				t.Errorf("body = %s, want the reason", body)
			}
			if tt.want == 200 && body != tt.method {
				t.Errorf("body = %s: the handler behind saw another method than %s", body, tt.method)
			}
		})
	}
}

func TestPanicOutsideTheProcedures(t *testing.T) {
	tests := []struct {
		name, path string
		h          http.HandlerFunc
		status     int
	}{
		{"page", "/", func(http.ResponseWriter, *http.Request) { panic("secret cause") }, 500},
		{"prpc", "/prpc/KMS.GetMeta", func(http.ResponseWriter, *http.Request) { panic("secret cause") }, 400},
		{"half an answer", "/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "half")
			panic("secret cause")
		}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			core, logs := observer.New(zapcore.DebugLevel)
			chain, err := rpc.New(rpc.Config{Log: zap.New(core), Access: rpc.Access{"/a.B/C": nil}})
			if err != nil {
				t.Fatal(err)
			}
			s := httptest.NewServer(chain.Wrap(tt.h))
			defer s.Close()
			res, err := s.Client().Get(s.URL + tt.path)
			if tt.status == 0 {
				if err == nil {
					_, err = io.ReadAll(res.Body)
					res.Body.Close()
				}
				if err == nil {
					t.Error("the answer is complete, want the connection cut")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, _ := io.ReadAll(res.Body)
			id := res.Header.Get("X-Request-Id")
			if want := `{"error": "internal error (id ` + id + `)"}`; res.StatusCode != tt.status || string(body) != want || id == "" {
				t.Errorf("answer = %d %s, want %d %s", res.StatusCode, body, tt.status, want)
			}
			line := logs.FilterMessage("panic in handler").All()
			if len(line) != 1 || line[0].ContextMap()["panic"] != "secret cause" {
				t.Errorf("panic lines %v, want one with the cause", line)
			}
		})
	}
}
