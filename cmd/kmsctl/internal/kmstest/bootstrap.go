package kmstest

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"teekms/internal/attest/simtd"
	"teekms/internal/ratls"
)

// BootstrapServer answers as a configuration bootstrap server does, and keeps
// what it was sent. It starts nothing.
type BootstrapServer struct {
	// URL is where it listens.
	URL string

	mu    sync.Mutex // guards what follows
	posts []Post
	conns int
	// answer, when not nil, answers in the place of the usual texts.
	answer http.HandlerFunc
}

// Post is a request that a server was sent.
type Post struct {
	Path, ContentType, Authorization, Body string
}

// Certificate makes the certificate of a bootstrap server in a software trust
// domain.
func Certificate(t testing.TB, td *simtd.TD) tls.Certificate {
	t.Helper()
	cert, err := ratls.NewCertificate(t.Context(), ratls.ClientCertConfig{Attester: td, CommonName: "cosmian.kms", Generation: ratls.Gen8})
	check(t, err)
	return cert
}

// NewBootstrapServer serves with a certificate until the end of the test; edit,
// when not nil, changes its TLS configuration.
func NewBootstrapServer(t testing.TB, cert tls.Certificate, edit func(*tls.Config)) *BootstrapServer {
	t.Helper()
	s := &BootstrapServer{}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	check(t, err)
	s.URL = "https://" + l.Addr().String()
	config := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert}
	if edit != nil {
		edit(config)
	}
	srv := &http.Server{
		Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: 10 * time.Second, ErrorLog: zap.NewStdLog(zap.NewNop()),
		TLSConfig: config, TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				s.mu.Lock()
				s.conns++
				s.mu.Unlock()
			}
		},
	}
	done := make(chan struct{})
	go func() {
		_ = srv.Serve(tls.NewListener(l, config)) // ends with Close
		close(done)
	}()
	t.Cleanup(func() {
		_ = srv.Close() // nothing is in flight that anyone waits for
		<-done
	})
	return s
}

// SetAnswer has h answer every request.
func (s *BootstrapServer) SetAnswer(h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = h
}

// Posts returns what was sent, and over how many connections.
func (s *BootstrapServer) Posts() (posts []Post, connections int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Post(nil), s.posts...), s.conns
}

func (s *BootstrapServer) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return
	}
	s.mu.Lock()
	s.posts = append(s.posts, Post{r.URL.Path, r.Header.Get("Content-Type"), r.Header.Get("Authorization"), string(body)})
	answer := s.answer
	s.mu.Unlock()
	if answer != nil {
		answer(w, r)
		return
	}
	texts := map[string]string{
		"/redis-findex":    "Successfully received Redis-Findex configuration",
		"/postgresql":      "Successfully received PostgreSQL configuration",
		"/mysql":           "Successfully received MySql/MariaDB configuration",
		"/sqlite":          "Successfully received Sqlite configuration",
		"/sqlite-enc":      "Successfully received Sqlite Enc. configuration",
		"/pkcs12":          "PKCS#12 of 42 bytes received",
		"/pkcs12-password": "PKCS#12 password received",
		"/start":           "Starting the KMS server",
	}
	text, ok := texts[r.URL.Path]
	if !ok || r.Method != http.MethodPost {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	fmt.Fprintf(w, `{"success":%q}`, text) //nolint:errcheck // the client may be gone
}

// Leaf is the certificate of a server, parsed.
func Leaf(t testing.TB, cert tls.Certificate) *x509.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	check(t, err)
	return leaf
}
