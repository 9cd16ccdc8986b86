package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/mem"

	onboardv1 "teekms/gen/onboard/v1"
)

// TestDomainsAccepted bootstraps for each kind of name.
func TestDomainsAccepted(t *testing.T) {
	long := strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63) + "." + strings.Repeat("d", 61)
	tests := []struct{ name, domain, san string }{
		{"a name", "kms.example.com", "DNS:kms.example.com"},
		{"an internationalized name as A-labels", "xn--bcher-kva.example", "DNS:xn--bcher-kva.example"},
		{"a single label", "localhost", "DNS:localhost"},
		{"a label of digits inside", "1.kms.3com.example", "DNS:1.kms.3com.example"},
		{"253 bytes", long, "DNS:" + long},
		{"an IPv4 address", "192.0.2.7", "IP Address:192.0.2.7"},
		{"an IPv6 address", "2001:db8::1", "IP Address:2001:DB8:0:0:0:0:0:1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			k := newKMS(t, "quote_enabled = false", "")
			k.onboarding(t, "dstack-onboard")
			body, err := json.Marshal(map[string]string{"domain": tt.domain})
			if err != nil {
				t.Fatal(err)
			}
			if a := post(t, k.URL("http")+bootstrapPath, string(body)); a.StatusCode != http.StatusOK {
				t.Fatalf("Bootstrap = %d %s", a.StatusCode, a.body)
			}
			names := shell(t, "openssl x509 -noout -ext subjectAltName -in "+filepath.Join(k.Certs, "rpc.crt"))
			if got := strings.TrimSpace(names[strings.Index(names, "\n"):]); got != tt.san {
				t.Errorf("subjectAltName = %s, want %s", got, tt.san)
			}
			shell(t, fmt.Sprintf("openssl verify -CAfile %[1]s/root-ca.crt %[1]s/rpc.crt", k.Certs))
			cert := parseCertificate(t, k.file(t, "rpc.crt"))
			if err := cert.VerifyHostname(tt.domain); err != nil || cert.Subject.CommonName != tt.domain {
				t.Errorf("common name %q, host name: %v", cert.Subject.CommonName, err)
			}
			// And it can be served under that name.
			_, client := k.serve(t, tt.domain, fmt.Sprintf("DSTACK_KMS_RPC_PORT=%d", k.movePort(t)))
			if a := get(t, client, k.URL("https")+"/health"); a.body != "OK" {
				t.Errorf("/health = %d %s", a.StatusCode, a.body)
			}
		})
	}
}

func TestDomainsRefused(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	k.onboarding(t, "dstack-kms")
	url := k.URL("http")
	conn := grpcConn(t, k, nil)
	label := strings.Repeat("a", 64)
	tests := []struct{ name, domain, text string }{
		{"empty", "", "must not be empty"},
		{"a U-label", "bücher.example", "has a byte that is not ASCII; give an internationalized name as A-labels (xn--...)"},
		{"an underscore", "kms_1.example.com", "character '_' is not allowed in a name"},
		{"a space", "kms example.com", "character ' ' is not allowed in a name"},
		{"a line feed", "kms.example.com\n", `character '\n' is not allowed in a name`},
		{"a NUL", "kms\x00.example.com", `character '\x00' is not allowed in a name`},
		{"a wildcard", "*.example.com", "wildcards are not allowed"},
		{"a trailing dot", "kms.example.com.", "must not end with a dot"},
		{"a leading dot", ".example.com", "has an empty label"},
		{"an empty label", "kms..example.com", "has an empty label"},
		{"254 bytes", strings.Repeat("a.", 126) + "aa", "is longer than 253 bytes"},
		{"a label of 64 bytes", label + ".example.com", `label "` + label + `" is longer than 63 bytes`},
		{"a hyphen at the edge", "-kms.example.com", `label "-kms" begins or ends with a hyphen`},
		{"a numeric last label", "192.0.2.256", `"192.0.2.256" ends in a number but is not an IP address`},
		{"a number alone", "1", `"1" ends in a number but is not an IP address`},
		{"a hexadecimal last label", "kms.0x7f", `"kms.0x7f" ends in a number but is not an IP address`},
		{"an address with a zone", "fe80::1%eth0", `address "fe80::1%eth0" has a zone`},
		{"an address in brackets", "[2001:db8::1]", "character '[' is not allowed in a name"},
		{"an address with a port", "192.0.2.7:9100", "character ':' is not allowed in a name"},
		{"a URL", "https://kms.example.com", "character ':' is not allowed in a name"},
		{"markup", "<script>", "character '<' is not allowed in a name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body, err := json.Marshal(map[string]string{"domain": tt.domain})
			if err != nil {
				t.Fatal(err)
			}
			text := "domain: " + tt.text
			wantRefusal(t, post(t, url+bootstrapPath, string(body)), text)
			wantConnectError(t, connectPost(t, http.DefaultClient, url+connectPath, string(body)), "invalid_argument", text)
			err = conn.Invoke(t.Context(), connectPath, &onboardv1.BootstrapRequest{Domain: tt.domain}, &onboardv1.BootstrapResponse{})
			wantStatus(t, err, codes.InvalidArgument, text)
		})
	}
	if left := tree(t, k.Certs); len(left) != 0 {
		t.Errorf("a refused domain wrote %v", left)
	}
}

// TestBadDomainUnattended refuses before anything is opened.
func TestBadDomainUnattended(t *testing.T) {
	t.Parallel()
	k := newKMS(t, `auto_bootstrap_domain = "kms_1.example.com"`, "")
	code, _, stderr := run(t, "dstack-kms", "--config", k.Config)
	wantErrorLine(t, code, 1, stderr, k.Config+":12:1: core.onboard.auto_bootstrap_domain: character '_' is not allowed in a name")
	if left := tree(t, k.Certs); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestBadInput sends what no client should send, to both dialects.
func TestBadInput(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	p := k.onboarding(t, "dstack-kms")
	url := k.URL("http")
	const tooLarge = "request body: larger than 65536 bytes"
	// exact is the whole text of prpc, part a part of Connect's.
	tests := []struct{ name, body, exact, part string }{
		{"truncated", `{"domain":"kms`, "request body: not JSON at byte 14: unexpected end of JSON input", "request body"},
		{"a number for a string", `{"domain":1}`, "domain: want a string, not a number", "domain"},
		{"true for a string", `{"domain":true}`, "domain: want a string, not true or false", "domain"},
		{"an array for a string", `{"domain":["kms.example.com"]}`, "domain: want a string, not an array", "domain"},
		{"an object for a string", `{"domain":{}}`, "domain: want a string, not an object", "domain"},
		{"an array", `[{"domain":"kms.example.com"}]`, "request body: want a JSON object, not an array", "request body"},
		{"a string", `"kms.example.com"`, "request body: want a JSON object, not a string", "request body"},
		{"null", `null`, "request body: want a JSON object, not null", "request body"},
		{"bytes after the object", exampleRequest + "x", "request body: not JSON at byte 29: invalid character 'x' after top-level value", "request body"},
		{"two objects", exampleRequest + exampleRequest, "request body: not JSON at byte 29: invalid character '{' after top-level value", "request body"},
		{"a name given twice", `{"domain":"a.example","domain":"b.example"}`, "domain: given twice", "domain"},
		{"bytes that are not UTF-8", "{\"domain\":\"\xff\xfe\"}", "request body: not UTF-8", "UTF-8"},
		{"a BOM", "\ufeff" + exampleRequest, "request body: not JSON at byte 1: invalid character 'ï' looking for beginning of value", "request body"},
		{"60000 arrays", `{"domain":` + strings.Repeat("[", 60000), "request body: not JSON at byte 10010: invalid character '[' exceeded max depth", "domain"},
		{"60000 arrays in a field that is not ours", `{"x":` + strings.Repeat("[", 60000), "request body: not JSON at byte 10005: invalid character '[' exceeded max depth", "request body"},
		{"100000 arrays", strings.Repeat("[", 100_000), tooLarge, "larger than configured max 65536"},
		{"more than 64 KiB", `{"domain":"` + strings.Repeat("a", 65<<10) + `"}`, tooLarge, "larger than configured max 65536"},
		{"10 MiB", strings.Repeat(" ", 10<<20), tooLarge, "larger than"},
		{
			"a request_id of 129 bytes", `{"domain":"kms.example.com","request_id":"` + strings.Repeat("x", 129) + `"}`,
			"request_id: has 129 bytes, at most 128 are allowed", "request_id",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wantRefusal(t, postRaw(t, url+bootstrapPath, "", tt.body), tt.exact)
			a := postRaw(t, url+connectPath, "application/json", tt.body)
			code := "invalid_argument"
			if strings.HasPrefix(tt.part, "larger") {
				code = "resource_exhausted"
			}
			wantConnectError(t, a, code, tt.part)
		})
	}
	t.Run("null for a string", func(t *testing.T) {
		wantRefusal(t, post(t, url+bootstrapPath, `{"domain":null}`), "domain: want a string, not null")
		// protobuf JSON takes null for the default.
		wantConnectError(t, connectPost(t, http.DefaultClient, url+connectPath, `{"domain":null}`), "invalid_argument", "domain: must not be empty")
	})
	t.Run("a body without length that never ends", func(t *testing.T) {
		resp, err := http.Post(url+bootstrapPath, "application/json", io.LimitReader(endless{}, 1<<20))
		if err == nil { // else the connection was closed on the sender, which is as good
			wantRefusal(t, read(t, resp), tooLarge)
		}
	})
	t.Run("gzip", func(t *testing.T) {
		header := map[string]string{"Content-Type": "application/json", "Content-Encoding": "gzip"}
		wantRefusal(t, request(t, http.DefaultClient, http.MethodPost, url+bootstrapPath, "\x1f\x8b\x08", header),
			"request body: a compressed body is not accepted: send it without Content-Encoding")
		wantConnectError(t, request(t, http.DefaultClient, http.MethodPost, url+connectPath, "\x1f\x8b\x08", header),
			"unimplemented", `unknown compression "gzip"`)
	})
	t.Run("garbage for protobuf", func(t *testing.T) {
		for _, garbage := range []string{"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "\x0a\x7fshort", "\x0a\x02\xff\xfe", strings.Repeat("\x0b", 60000)} {
			a := postRaw(t, url+"/prpc/Onboard.Bootstrap", "application/octet-stream", garbage)
			if a.StatusCode != http.StatusBadRequest || a.Header.Get("Content-Type") != "application/octet-stream" ||
				!strings.HasPrefix(a.body, "\x0a") || !strings.Contains(a.body, "request body: ") || leaks.MatchString(a.body) {
				t.Errorf("prpc = %d %q, want 400 and a message", a.StatusCode, a.body)
			}
			wantConnectError(t, postRaw(t, url+connectPath, "application/proto", garbage), "invalid_argument", "request body: ")
		}
	})
	t.Run("queries", func(t *testing.T) {
		wantRefusal(t, get(t, http.DefaultClient, url+"/prpc/Bootstrap?domain=kms.example.com"), "Bootstrap has side effects: use POST")
		for _, query := range []string{"?json", "?json=%zz", "?%zz", "?a=b&a=c", "?" + strings.Repeat("x", 4000)} {
			if a := get(t, http.DefaultClient, url+"/prpc/GetAttestationInfo"+query); a.StatusCode != http.StatusOK {
				t.Errorf("GET with %.20s = %d %s", query, a.StatusCode, a.body)
			}
		}
		for _, query := range []string{"", "?encoding=xml&message=%7B%7D", "?encoding=json&message=%5B", "?encoding=json&base64=1&message=%25%25"} {
			a := get(t, http.DefaultClient, url+"/onboard.v1.Onboard/GetAttestationInfo"+query)
			if a.StatusCode < 400 || a.StatusCode >= 500 || leaks.MatchString(a.body) {
				t.Errorf("Connect GET with %q = %d %s, want a refusal", query, a.StatusCode, a.body)
			}
		}
	})
	t.Run("a query that is not base64", func(t *testing.T) {
		a := get(t, http.DefaultClient, url+"/onboard.v1.Onboard/GetAttestationInfo?connect=v1&encoding=json&base64=1&message=%25%25")
		wantConnectError(t, a, "invalid_argument", "query: message is not URL-safe base64")
	})
	t.Run("gRPC", func(t *testing.T) {
		conn := grpcConn(t, k, nil)
		call := func(domain string, options ...grpc.CallOption) error {
			return conn.Invoke(t.Context(), connectPath, &onboardv1.BootstrapRequest{Domain: domain}, &onboardv1.BootstrapResponse{}, options...)
		}
		wantStatus(t, call(strings.Repeat("a", 65<<10)), codes.ResourceExhausted, "larger than configured max 65536")
		wantStatus(t, call(exampleDomain, grpc.UseCompressor(gzip.Name)), codes.Unimplemented, `unknown compression "gzip"`)
		wantStatus(t, call("a", grpc.ForceCodecV2(garbage{})), codes.InvalidArgument, "request body: ")
	})
	t.Run("a header of 64 KiB", func(t *testing.T) {
		a := request(t, http.DefaultClient, http.MethodGet, url+"/health", "", map[string]string{"X-Big": strings.Repeat("x", 64<<10)})
		if a.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("answer = %d, want 431", a.StatusCode)
		}
	})
	if left := tree(t, k.Certs); len(left) != 0 {
		t.Errorf("bad input wrote %v", left)
	}
	if strings.Contains(p.stderr.String(), "panic") {
		t.Errorf("something panicked:\n%s", p.stderr)
	}
	// And after all of that it works.
	checkBootstrapReply(t, k, post(t, url+bootstrapPath, exampleRequest).body)
}

// garbage is a gRPC codec that codes everything as bytes that are no protobuf.
type garbage struct{}

func (garbage) Name() string { return "proto" }

func (garbage) Marshal(any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer("\x0a\x7fshort")}, nil
}

func (garbage) Unmarshal(mem.BufferSlice, any) error { return nil }

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// postRaw sends a body of any size. The server may answer and close before all
// of it is sent.
func postRaw(t testing.TB, url, contentType, body string) answer {
	t.Helper()
	header := map[string]string{"Expect": "100-continue"} // so that the answer is not lost to a reset
	if contentType != "" {
		header["Content-Type"] = contentType
	}
	client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: patience, DisableKeepAlives: true}}
	if len(body) <= 64<<10 {
		delete(header, "Expect")
	}
	return request(t, client, http.MethodPost, url, body, header)
}

// staysOpen tells how long the service of k bears a connection that begins with
// opening, and goes on with a byte now and then where it drips.
func staysOpen(t testing.TB, k *kmsDir, opening string, drips bool) time.Duration {
	t.Helper()
	conn := dial(t, k)
	if _, err := io.WriteString(conn, opening); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	drip := time.NewTicker(50 * time.Millisecond)
	defer drip.Stop()
	closed := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, bufio.NewReader(conn))
		closed <- err
	}()
	for time.Since(begin) < patience {
		select {
		case err := <-closed:
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("reading: %v", err)
			}
			return time.Since(begin)
		case <-drip.C:
			if drips {
				_, _ = io.WriteString(conn, "a") // fails once it is closed
			}
		}
	}
	t.Fatalf("the connection is still open after %v", patience)
	return 0
}

// TestSlowClients send a byte now and then.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "[core.limits]\nheader_timeout = \"300ms\"\nread_timeout = \"600ms\"\nidle_timeout = \"400ms\"\n")
	k.onboarding(t, "dstack-kms")
	tests := []struct{ name, opening string }{
		{"a connection that says nothing", ""},
		{"a header that does not end", "POST /prpc/Bootstrap?json HTTP/1.1\r\nHost: kms\r\n"},
		{"a prpc body that does not end", "POST /prpc/Bootstrap?json HTTP/1.1\r\nHost: kms\r\nContent-Length: 1000\r\n\r\n{"},
		{"a Connect body that does not end", "POST " + connectPath + " HTTP/1.1\r\nHost: kms\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"},
		{"a connection that is idle", "GET /health HTTP/1.1\r\nHost: kms\r\n\r\n"},
		{"HTTP/2 that says nothing", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			quick(t, 3*time.Second, "closing the connection", func() time.Duration {
				return staysOpen(t, k, tt.opening, strings.Contains(tt.name, "not end"))
			})
		})
	}
	t.Cleanup(func() {
		if left := tree(t, k.Certs); len(left) != 0 {
			t.Errorf("a slow client wrote %v", left)
		}
	})
}
