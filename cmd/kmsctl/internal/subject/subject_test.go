package subject_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"teekms/cmd/kmsctl/internal/kmstest"
	"teekms/cmd/kmsctl/internal/privatefile"
	"teekms/cmd/kmsctl/internal/record"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/cmd/kmsctl/internal/subject"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
)

func TestFromDirNeedsNothingSecret(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	// Whoever opens one of these fails.
	for _, name := range []string{"root-ca.key", "tmp-ca.key", "rpc.key", "root-k256.key"} {
		if err := os.Symlink("/dev/null/not-there", filepath.Join(k.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := subject.FromDir(k.Dir)
	if err != nil {
		t.Fatalf("FromDir() = %v", err)
	}
	if s.Record == nil || s.CA.Certificate == nil || s.Leaf.Certificate == nil || s.Live {
		t.Errorf("FromDir() = %+v, want record and both certificates", s)
	}
	if s.Unfinished {
		t.Error("FromDir() says that a change of the directory is not finished")
	}
	if err := os.Mkdir(filepath.Join(k.Dir, ".stage"), 0o700); err != nil {
		t.Fatal(err)
	}
	if s, err := subject.FromDir(k.Dir); err != nil || !s.Unfinished {
		t.Errorf("FromDir() with a stage = %+v, %v, want that it is not finished", s, err)
	}
	if s.PrivateKeys.State != privatefile.NotReadable {
		t.Errorf("FromDir() says that the private keys are %s, want %s", s.PrivateKeys.State, privatefile.NotReadable)
	}
}

func TestFromDirRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(*kmstest.KMS) error
		want   string
		code   int
	}{
		{"no directory", func(k *kmstest.KMS) error { k.Dir += "/none"; return nil }, "no such file", status.Failed},
		{"a file", func(k *kmstest.KMS) error { k.Dir += "/rpc.crt"; return nil }, "not a directory", status.Failed},
		{"no record", func(k *kmstest.KMS) error { return os.Remove(k.Dir + "/bootstrap-info.json") }, "there is nothing to verify", status.NotVerified},
		{"no root certificate", func(k *kmstest.KMS) error { return os.Remove(k.Dir + "/root-ca.crt") }, "reading certificate: open ", status.Failed},
		{"no RPC certificate", func(k *kmstest.KMS) error { return os.Remove(k.Dir + "/rpc.crt") }, "reading certificate: open ", status.Failed},
		{"a file that a commit had not published yet", func(k *kmstest.KMS) error {
			return errors.Join(os.Mkdir(k.Dir+"/.stage", 0o700), os.Rename(k.Dir+"/rpc.crt", k.Dir+"/.stage/rpc.crt"))
		}, "rpc.crt: no such file or directory (a change of this directory is going on, or was interrupted", status.Failed},
		{"a large certificate", func(k *kmstest.KMS) error { return os.Truncate(k.Dir+"/rpc.crt", 1<<20) }, "more than 65536 bytes", status.Failed},
		{"a large record", func(k *kmstest.KMS) error { return os.Truncate(k.Dir+"/bootstrap-info.json", record.MaxSize+1) }, "more than", status.Failed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := kmstest.New(t, simtd.Config{})
			if err := tt.change(k); err != nil {
				t.Fatal(err)
			}
			_, err := subject.FromDir(k.Dir)
			if err == nil || !strings.Contains(err.Error(), tt.want) || status.Of(err) != tt.code {
				t.Errorf("FromDir() = %v (code %d), want an error with %q (code %d)", err, status.Of(err), tt.want, tt.code)
			}
		})
	}
}

func TestFromInfoNeedsItsFiles(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	info := k.Dir + "/bootstrap-info.json"
	for _, args := range [][2]string{{k.Dir + "/none", ""}, {info, k.Dir + "/none"}} {
		if _, err := subject.FromInfo(t.Context(), args[0], args[1]); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("FromInfo(%q) = %v, want that a file does not exist", args, err)
		}
	}
}

// answer is what GetMeta answers.
func answer(t *testing.T, k *kmstest.KMS) map[string]any {
	t.Helper()
	var rec map[string]string
	if err := json.Unmarshal(k.Record(t, hex.EncodeToString), &rec); err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"ca_cert": string(keys.CertificatePEM(k.CA.Raw)), "allow_any_upgrade": true,
		"k256_pubkey": hex.EncodeToString(k.Roots.K256Public()), "bootstrap_info": rec,
	}
}

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

func TestFromURLSpeaksTheDstackDialect(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	body := kmstest.JSON(t, answer(t, k))
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.RequestURI() != "/kms/prpc/KMS.GetMeta?json" {
			http.Error(w, r.Method+" "+r.URL.RequestURI(), http.StatusNotFound)
			return
		}
		w.Write(body)
	})
	for _, suffix := range []string{"/kms", "/kms/", "/kms/prpc", "/kms/prpc/"} {
		s, err := subject.FromURL(t.Context(), srv.URL+suffix)
		if err != nil {
			t.Errorf("FromURL(%s) = %v", suffix, err)
			continue
		}
		if s.Record == nil || !s.CA.Equal(k.CA) || !s.Plaintext || !s.Live || s.Leaf != nil {
			t.Errorf("FromURL(%s) = %+v, want record and CA, and no certificate of plain HTTP", suffix, s)
		}
	}
}

func TestFromURLShowsTheCertificateOfThePeer(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(kmstest.JSON(t, answer(t, k))) }))
	t.Cleanup(srv.Close)
	s, err := subject.FromURL(t.Context(), srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	if s.Leaf == nil || !s.Leaf.Equal(srv.Certificate()) || s.Plaintext || s.Host != "127.0.0.1" {
		t.Errorf("FromURL() = %+v, want the certificate of the server", s)
	}
}

func TestFromURLRefuses(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	with := func(name string, v any) string {
		a := answer(t, k)
		a[name] = v
		return string(kmstest.JSON(t, a))
	}
	tests := []struct {
		name   string
		status int
		body   string
		want   string
		code   int
	}{
		{"an error of the dialect", http.StatusBadRequest, `{"error":"no such method"}`, "400 Bad Request: no such method", status.Failed},
		{"an error of another server", http.StatusNotFound, `not found`, "404 Not Found", status.Failed},
		{"another place", http.StatusFound, "", "302 Found", status.Failed},
		{"no JSON", http.StatusOK, `<html>`, "not the JSON of GetMeta", status.Failed},
		{"no record", http.StatusOK, with("bootstrap_info", nil), "there is nothing to verify", status.NotVerified},
		{"a key that is not hex", http.StatusOK, with("k256_pubkey", "zz"), "k256_pubkey: ", status.Failed},
		{"a root that is not hex", http.StatusOK, with("trust_root_sha256", "zz"), "trust_root_sha256: ", status.Failed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "http://127.0.0.1:1/")
				w.WriteHeader(tt.status)
				fmt.Fprint(w, tt.body)
			})
			_, err := subject.FromURL(t.Context(), srv.URL)
			if err == nil || !strings.Contains(err.Error(), tt.want) || status.Of(err) != tt.code {
				t.Errorf("FromURL() = %v (code %d), want an error with %q (code %d)", err, status.Of(err), tt.want, tt.code)
			}
		})
	}
}

func TestFromURLReadsNoMoreThanARecordNeeds(t *testing.T) {
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		chunk := []byte(strings.Repeat(" ", 1<<20))
		for r.Context().Err() == nil {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	if _, err := subject.FromURL(t.Context(), srv.URL); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("FromURL() = %v, want that the answer is too large", err)
	}
}

func TestFromURLObeysItsContext(t *testing.T) {
	srv := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := subject.FromURL(ctx, srv.URL); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("FromURL() = %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestFromURLTakesNoOtherURLs(t *testing.T) {
	for _, raw := range []string{"", "kms.example.com:9100", "ftp://a", "https://", "https://user@host", "https://host?q", "https://host#f", "https://a b"} {
		if _, err := subject.FromURL(t.Context(), raw); status.Of(err) != status.Usage {
			t.Errorf("FromURL(%q) = %v, want a usage error", raw, err)
		}
	}
}
