package kms_test

import (
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/ratls"
)

var update = flag.Bool("update", false, "write the golden files")

// TestGoldenAnswers holds every byte of the answers that existing clients read,
// but for certificates, which are never the same twice.
func TestGoldenAnswers(t *testing.T) {
	w := newWorld(t, func(w *world) {
		w.config.Now = func() time.Time { return time.Unix(1_700_000_000, 0) }
		w.config.Keys = serviceKeys(t, w.roots)
	})
	td := w.workload(t, vectorApp(t))
	attested := w.client(t, certificate(t, td, ratls.Gen8))
	tests := []struct{ name, method, path, body string }{
		{"GetMeta", "GET", "GetMeta", ""},
		{"GetAppKey", "POST", "KMS.GetAppKey?json", `{"api_version":1,"vm_config":"{\"os_image_hash\":\"00ff\"}"}`},
		{"GetAppEnvEncryptPubKey", "POST", "GetAppEnvEncryptPubKey?json", `{"app_id":"0x000102030405060708090a0b0c0d0e0f10111213"}`},
		{"GetKmsKey", "POST", "GetKmsKey?json", `{"vm_config":""}`},
		{"GetTempCaCert", "POST", "GetTempCaCert?json", "null"},
		{"GetAppKey refused", "POST", "GetAppKey?json", `{"api_version":2}`},
		{"SignCert refused", "POST", "SignCert?json", `{"api_version":0}`},
	}
	placeholders := strings.NewReplacer(
		quoted(w.config.Keys.RootCertificate), "ROOT CERTIFICATE",
		quoted(w.config.Keys.TempCertificate), "TEMPORARY CA CERTIFICATE",
		quoted(w.config.Keys.TempKey.Bytes()), "TEMPORARY CA KEY",
	)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, body := call(t, attested, tt.method, w.url+"/prpc/"+tt.path, tt.body)
			golden(t, tt.name, placeholders.Replace(string(body)))
		})
	}
}

func TestGoldenSignCert(t *testing.T) {
	w := newWorld(t)
	a := newApplicant(t, w.workload(t, vectorApp(t)))
	body, err := codec(t).Marshal(a.sign(t, 1, a.csr(t)))
	if err != nil {
		t.Fatal(err)
	}
	status, answer := post(t.Context(), t, w.client(t, nil), w.url+"/prpc/SignCert?json", body)
	if status != http.StatusOK {
		t.Fatalf("status = %d: %s", status, answer)
	}
	text := strings.ReplaceAll(string(answer), quoted(w.config.Keys.RootCertificate), "ROOT CERTIFICATE")
	const begin, end = `-----BEGIN CERTIFICATE-----\n`, `-----END CERTIFICATE-----\n`
	for _, name := range []string{"LEAF", "APPLICATION CA CERTIFICATE"} {
		head, rest, _ := strings.Cut(text, begin)
		_, tail, found := strings.Cut(rest, end)
		if !found {
			t.Fatalf("SignCert = %s, want three certificates", answer)
		}
		text = head + name + tail
	}
	golden(t, "SignCert", text)
}

// quoted is text as it stands in a JSON string.
func quoted(text []byte) string { return strings.ReplaceAll(string(text), "\n", `\n`) }

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", strings.ReplaceAll(name, " ", "-")+".json")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}
