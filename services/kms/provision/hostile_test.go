package provision_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	gopkcs12 "software.sslmate.com/src/go-pkcs12"

	"teekms/internal/serve"
)

// row is one request and what it gets: status and the whole text of "error" or
// "success", or the part of it before a final ….
type row struct {
	name, method, path string
	header             http.Header
	body               io.Reader
	status             int
	want               string
}

// sent is a row of a JSON route.
func sent(name, path, body string, status int, want string) row {
	return row{name, http.MethodPost, path, jsonType(), strings.NewReader(body), status, want}
}

// typed is a row with a content type.
func typed(name, path, contentType, body string, status int, want string) row {
	header := http.Header{"Content-Type": {contentType}}
	if contentType == "" {
		header = http.Header{}
	}
	return row{name, http.MethodPost, path, header, strings.NewReader(body), status, want}
}

// formed is a row of a form.
func formed(name string, status int, want string, parts ...part) row {
	body, contentType := form(parts...)
	return row{name, http.MethodPost, "/pkcs12", http.Header{"Content-Type": {contentType}}, bytes.NewReader(body), status, want}
}

// chunked hides the size of a body.
func chunked(r row) row {
	r.body = struct{ io.Reader }{r.body}
	return r
}

const badDatabase = "invalid database configuration: "

// hostileURLs are posted as URLs of a database.
func hostileURLs() []row {
	const ok = "Successfully received PostgreSQL configuration"
	url := func(name, url string, status int, want string) row {
		return sent("URL: "+name, "/postgresql", string(must(json.Marshal(map[string]string{"url": url}))), status, want)
	}
	bad := func(name, u, want string) row { return url(name, u, 400, badDatabase+want) }
	secretURL := func(format string) string { return strings.ReplaceAll(format, "SECRET", marker) }
	return []row{
		bad("empty", "", "no URL is given"),
		bad("a word", "postgres", "the URL does not begin with a scheme and ://"),
		bad("no scheme", "db.example.com:5432/kms", "the URL does not begin with a scheme and ://"),
		bad("a scheme alone", "postgresql://", "the URL names no host"),
		bad("one slash", "postgresql:/db.example.com", "the URL does not begin with a scheme and ://"),
		bad("the scheme of another database", "mysql://db.example.com", "the URL's scheme is not one of type \"postgresql\": …"),
		bad("the scheme of the web", "https://db.example.com", "the URL's scheme is not one of type …"),
		bad("a file", "file:///etc/passwd", "the URL's scheme is not one of type …"),
		bad("a scheme in capitals", "POSTGRESQL://db.example.com", "the URL's scheme is not one of type …"),
		bad("a space before it", " postgresql://db.example.com", "the URL holds a space or a control character…"),
		bad("a line feed", "postgresql://db.example.com\n", "the URL holds a space or a control character…"),
		bad("a zero", "postgresql://db\x00.example.com", "the URL holds a space or a control character…"),
		bad("a fragment", secretURL("postgresql://u:SECRET#@db.example.com"), "the URL holds a #…"),
		bad("an @ in the password", secretURL("postgresql://u:SECRET@x@db.example.com"), "the URL holds an @ that does not end the password…"),
		bad("a slash in the password", secretURL("postgresql://u:SECRET/x@db.example.com"), "the URL holds an @ that does not end the password…"),
		bad("a question mark in the password", secretURL("postgresql://u:SECRET?x@db.example.com"), "the URL holds an @ that does not end the password…"),
		bad("a percent sign in the password", secretURL("postgresql://u:SECRET%@db.example.com"), "the password in the URL has a % that no two hex digits follow…"),
		bad("a percent sign in the user", secretURL("postgresql://u%zz:SECRET@db.example.com"), "the user in the URL has a % that no two hex digits follow…"),
		bad("a zero in the password", secretURL("postgresql://u:SECRET%00@db.example.com"), "the password in the URL holds a zero byte"),
		bad("no user before the @", secretURL("postgresql://:SECRET@db.example.com"), "the URL names no user"),
		bad("no host behind the @", secretURL("postgresql://u:SECRET@"), "the URL names no host"),
		bad("a port alone", "postgresql://:5432", "the URL names no host"),
		bad("port 0", "postgresql://db.example.com:0", "the URL's port is not a number from 1 to 65535"),
		bad("port 65536", "postgresql://db.example.com:65536", "the URL's port is not a number from 1 to 65535"),
		bad("a negative port", "postgresql://db.example.com:-1", "the URL's port is not a number from 1 to 65535"),
		bad("a port that is a name", "postgresql://db.example.com:postgres", "the URL's port is not a number from 1 to 65535"),
		bad("an empty port", "postgresql://db.example.com:", "the URL's port is not a number from 1 to 65535"),
		bad("an open bracket", "postgresql://[::1", "the URL's host has a [ without a ]"),
		bad("brackets around a name", "postgresql://[db]", "the URL's host in brackets is not an IPv6 address"),
		bad("an address with a zone", "postgresql://[fe80::1%25eth0]", "the URL's host in brackets is not an IPv6 address"),
		bad("half an IPv4 address", "postgresql://127.1", "the URL's host is a number, but not an IP address"),
		bad("an address in hexadecimal", "postgresql://0x7f000001", "the URL's host is a number, but not an IP address"),
		bad("two dots", "postgresql://db..example.com", "the URL's host is not a DNS name"),
		bad("a star", "postgresql://*.example.com", "the URL's host is neither a DNS name nor an IP address…"),
		bad("several hosts", "postgresql://a,b", "the URL's host is neither a DNS name nor an IP address…"),
		bad("a socket", "postgresql://%2Fvar%2Frun", "the URL's host is neither a DNS name nor an IP address…"),
		bad("two databases", "postgresql://u@db.example.com/a/b", "the URL's path is not the name of a database"),
		bad("a database with a line feed", "postgresql://u@db.example.com/a%0Ab", "the database's name holds control characters…"),
		bad("a database of 64 bytes", "postgresql://u@db.example.com/"+strings.Repeat("x", 64), "the database's name is longer than 63 bytes"),
		bad("a parameter", "postgresql://u@db.example.com/kms?options=-c", "the URL has the parameter \"options\", which is not supported"),
		bad("a password as a parameter", secretURL("postgresql://u@db.example.com/kms?password=SECRET"), "the URL has the parameter \"password\", which is not supported"),
		bad("a parameter that is a secret", secretURL("postgresql://u@db.example.com/kms?SECRET!"), "the URL has the parameter (not shown), which is not supported"),
		bad("TLS without verification", "postgresql://u@db.example.com/kms?sslmode=require", "the URL's parameter sslmode must be …"),
		bad("TLS if convenient", "postgresql://u@db.example.com/kms?sslmode=prefer", "the URL's parameter sslmode must be …"),
		bad("sslmode twice", "postgresql://u@db.example.com/kms?sslmode=disable&sslmode=verify-full", "the URL has the parameter sslmode twice"),
		url("8193 bytes", "postgresql://"+strings.Repeat("x", 8180), 400, "url: has 8193 bytes, at most 8192 are allowed"),
		url("as in the tutorial", "postgresql://postgres-server:5432", 200, ok),
		url("without TLS, for start to judge", "postgresql://u@db.example.com/kms?sslmode=disable", 200, ok),
		url("the short scheme", "postgres://u@[::1]:5432/kms", 200, ok),
		url("a name in capitals", "postgresql://u@DB.Example.COM/kms", 200, ok),
		sent("MySQL with the scheme of another", "/mysql", `{"url":"postgresql://h"}`, 400, badDatabase+"the URL's scheme is not one of type \"mysql\"…"),
		sent("MariaDB", "/mysql", `{"url":"mariadb://mysql-server:3306"}`, 200, "Successfully received MySql/MariaDB configuration"),
		sent("Redis with the scheme of another", "/redis-findex", `{"url":"http://r","master_password":"p","findex_label":"l"}`, 400, badDatabase+"the URL's scheme is not one of type \"redis-findex\"…"),
		sent("Redis with an empty password", "/redis-findex", `{"url":"redis://r","master_password":"","findex_label":"l"}`, 400, badDatabase+"type \"redis-findex\" needs a master password"),
		sent("Redis with an empty label", "/redis-findex", `{"url":"redis://r","master_password":"p","findex_label":""}`, 400, badDatabase+"type \"redis-findex\" needs a label"),
		sent("Redis with a label of 257 bytes", "/redis-findex", `{"url":"redis://r","master_password":"p","findex_label":"`+strings.Repeat("x", 257)+`"}`, 400, "findex_label: has 257 bytes, at most 256 are allowed"),
		sent("Redis with a password of 1025 bytes", "/redis-findex", `{"url":"redis://r","master_password":"`+strings.Repeat("x", 1025)+`","findex_label":"l"}`, 400, "master_password: has 1025 bytes, at most 1024 are allowed"),
		sent("Redis with a database that is none", "/redis-findex", `{"url":"redis://r/x","master_password":"p","findex_label":"l"}`, 400, badDatabase+"the URL's path is not the number of a Redis database"),
	}
}

// hostileJSON are bodies of the JSON routes.
func hostileJSON() []row {
	rows := []row{
		sent("no body", "/sqlite", ``, 400, "request body: empty, want a JSON object"),
		sent("white space", "/sqlite", " \n\t", 400, "request body: empty, want a JSON object"),
		sent("no body for start", "/start", ``, 400, "request body: empty, want a JSON object"),
		sent("null", "/sqlite", `null`, 400, "request body: want a JSON object"),
		sent("a string", "/sqlite", `"path"`, 400, "request body: want a JSON object"),
		sent("an array", "/sqlite", `[{"path":"/x"}]`, 400, "request body: want a JSON object"),
		sent("a number", "/start", `1`, 400, "request body: want a JSON object"),
		sent("an empty object", "/sqlite", `{}`, 400, "path: is required"),
		sent("two fields missing", "/redis-findex", `{"url":"redis://r"}`, 400, "findex_label: is required"),
		sent("a password missing", "/pkcs12-password", `{}`, 400, "password: is required"),
		sent("an unknown field", "/sqlite", `{"path":"/x","mode":"rw"}`, 400, `request body: unknown field "mode"`),
		sent("an unknown field that is a secret", "/sqlite", `{"`+strings.Repeat("x", 32)+marker+`":1}`, 400, `request body: unknown field "`+strings.Repeat("x", 32)+`"`),
		sent("a field in capitals", "/sqlite", `{"Path":"/x"}`, 400, `request body: unknown field "Path"`),
		sent("a field twice", "/sqlite", `{"path":"/x","path":"/y"}`, 400, "path: given twice"),
		sent("a field twice, escaped", "/sqlite", `{"path":"/x","p\u0061th":"/y"}`, 400, "path: given twice"),
		sent("a number for a text", "/sqlite", `{"path":1}`, 400, "path: want a string"),
		sent("null for a text", "/sqlite", `{"path":null}`, 400, "path: want a string"),
		sent("an object for a text", "/pkcs12-password", `{"password":{"a":"`+marker+`"}}`, 400, "password: want a string"),
		sent("an array for a text", "/pkcs12-password", `{"password":["`+marker+`"]}`, 400, "password: want a string"),
		sent("a truth for a text", "/pkcs12-password", `{"password":true}`, 400, "password: want a string"),
		sent("a text for a truth", "/start", `{"clear_database":"true"}`, 400, "clear_database: want true or false"),
		sent("a number for a truth", "/start", `{"clear_database":1}`, 400, "clear_database: want true or false"),
		sent("null for a truth", "/start", `{"clear_database":null}`, 400, "clear_database: want true or false"),
		sent("something behind it", "/sqlite", `{"path":"/x"}{}`, 400, "request body: something follows the JSON object"),
		sent("noise behind it", "/sqlite", `{"path":"/x"} `+marker, 400, "request body: something follows the JSON object"),
		sent("cut off", "/pkcs12-password", `{"password":"`+marker, 400, "request body: not JSON, or cut off"),
		sent("no value", "/sqlite", `{"path"}`, 400, "request body: not JSON at byte 7"),
		sent("a comma too many", "/sqlite", `{"path":"/x",}`, 400, "request body: not JSON at byte 13"),
		sent("single quotes", "/pkcs12-password", `{'password':'`+marker+`'}`, 400, "request body: not JSON at byte 1"),
		sent("a comment", "/start", `{/* */}`, 400, "request body: not JSON at byte 1"),
		sent("a byte order mark", "/start", "\uFEFF{}", 400, "request body: not JSON at byte 1"),
		sent("not UTF-8", "/pkcs12-password", "{\"password\":\"\xff"+marker+"\"}", 400, "request body: not UTF-8"),
		sent("Latin-1", "/sqlite", "{\"path\":\"/caf\xe9\"}", 400, "request body: not UTF-8"),
		sent("half a surrogate pair", "/pkcs12-password", `{"password":"\ud800`+marker+`"}`, 400, "request body: half of a surrogate pair in a string"),
		sent("the other half", "/pkcs12-password", `{"password":"\udc00"}`, 400, "request body: half of a surrogate pair in a string"),
		sent("a surrogate pair", "/pkcs12-password", `{"password":"\ud83d\udd11"}`, 200, "PKCS#12 password received"),
		sent("a control character", "/pkcs12-password", "{\"password\":\"a\nb\"}", 400, "request body: not JSON at byte 13"),
		sent("10000 levels", "/sqlite", `{"path":`+strings.Repeat("[", 10000), 400, "path: want a string"),
		sent("30000 objects", "/sqlite", strings.Repeat(`{"path":`, 7000), 400, "path: want a string"),
		sent("64 KiB and a byte", "/sqlite", `{"path":"`+strings.Repeat("x", 64<<10-10)+`"}`, 413, "the body is larger than 65536 bytes"),
		chunked(sent("64 KiB and a byte, unannounced", "/sqlite", `{"path":"`+strings.Repeat("x", 64<<10-10)+`"}`, 413, "the body is larger than 65536 bytes")),
		sent("two megabytes", "/start", strings.Repeat(" ", 2<<20), 413, "the body is larger than 65536 bytes"),
		chunked(sent("two megabytes, unannounced", "/start", strings.Repeat(" ", 2<<20), 413, "the body is larger than 65536 bytes")),
		sent("a password of 1025 bytes", "/pkcs12-password", `{"password":"`+strings.Repeat("x", 1025)+`"}`, 400, "password: has 1025 bytes, at most 1024 are allowed"),
		sent("a path of 4097 bytes", "/sqlite", `{"path":"/`+strings.Repeat("x", 4096)+`"}`, 400, "path: has 4097 bytes, at most 4096 are allowed"),
		sent("an empty path", "/sqlite", `{"path":""}`, 400, "path: must not be empty"),
		sent("a zero in a path", "/sqlite", `{"path":"/a\u0000b"}`, 400, "path: holds a control character"),
		sent("a line feed in a path", "/sqlite-enc", `{"path":"/a\nb"}`, 400, "path: holds a control character"),
		sent("a path out of the state directory", "/sqlite", `{"path":"../../etc"}`, 400, "path: is relative and leaves the state directory…"),
		sent("the fields of another database", "/postgresql", `{"path":"/x"}`, 400, `request body: unknown field "path"`),
		sent("a start without a database", "/start", `{"clear_database":true}`, 400, "The KMS will not start: please provide database parameters to the bootstrap server first."),
	}
	return rows
}

// hostileHTTP are requests of the wrong method, path or type.
func hostileHTTP() []row {
	const jsonOnly = "Content-Type must be application/json"
	const p12Only = "Content-Type must be multipart/form-data or application/octet-stream or application/x-pkcs12"
	rows := []row{
		typed("no content type", "/sqlite", "", `{"path":"/x"}`, 415, jsonOnly),
		typed("a form", "/sqlite", "application/x-www-form-urlencoded", `{"path":"/x"}`, 415, jsonOnly),
		typed("text", "/start", "text/plain", `{}`, 415, jsonOnly),
		typed("JSON of another kind", "/start", "application/json-patch+json", `[]`, 415, jsonOnly),
		typed("a type that is none", "/start", "application/json;;;=", `{}`, 415, jsonOnly),
		typed("UTF-16", "/start", "application/json; charset=utf-16", `{}`, 415, jsonOnly),
		typed("UTF-8, said", "/pkcs12-password", "Application/JSON; Charset=UTF-8", `{"password":"x"}`, 200, "PKCS#12 password received"),
		{"compressed", http.MethodPost, "/start", http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}}, strings.NewReader("{}"), 415, "a compressed body is not accepted: send it without Content-Encoding"},
		typed("a file as JSON", "/pkcs12", "application/json", `{}`, 415, p12Only),
		typed("a file as text", "/pkcs12", "text/plain", `x`, 415, p12Only),
		{"from another site", http.MethodPost, "/start", http.Header{"Content-Type": {"application/json"}, "Sec-Fetch-Site": {"cross-site"}}, strings.NewReader("{}"), 403, "cross-origin request refused"},
		{"from another origin", http.MethodPost, "/sqlite", http.Header{"Content-Type": {"application/json"}, "Origin": {"https://evil.example"}}, strings.NewReader("{}"), 403, "cross-origin request refused"},
		{"with another's referer", http.MethodPost, "/pkcs12", http.Header{"Referer": {"https://evil.example/x"}}, strings.NewReader("{}"), 403, "cross-origin request refused"},
		{"GET of nothing", http.MethodGet, "/", nil, nil, 404, "there is nothing at this path"},
		{"POST to nothing", http.MethodPost, "/sqlite3", jsonType(), strings.NewReader("{}"), 404, "there is nothing at this path"},
		{"a path below", http.MethodPost, "/sqlite/x", jsonType(), strings.NewReader("{}"), 404, "there is nothing at this path"},
		{"a path in capitals", http.MethodPost, "/SQLITE", jsonType(), strings.NewReader("{}"), 404, "there is nothing at this path"},
		{"POST of the status", http.MethodPost, "/status", jsonType(), strings.NewReader("{}"), 405, "/status takes GET"},
		{"DELETE of the status", http.MethodDelete, "/status", nil, nil, 405, "/status takes GET"},
	}
	for _, path := range []string{"/redis-findex", "/postgresql", "/mysql", "/sqlite", "/sqlite-enc", "/sqlite-ec", "/pkcs12", "/pkcs12-password", "/start"} {
		rows = append(rows,
			row{"GET " + path, http.MethodGet, path, nil, nil, 405, path + " takes POST"},
			row{"PUT " + path, http.MethodPut, path, jsonType(), strings.NewReader("{}"), 405, path + " takes POST"})
	}
	return rows
}

// hostileForms are uploads. good is a file that is taken.
func hostileForms(t testing.TB, good []byte) []row {
	taken := fmt.Sprintf("PKCS#12 of %d bytes received", len(good))
	name := part{name: "name", content: []byte("pkcs12")}
	withType := func(contentType, file string, content []byte) part {
		return part{name: "x", file: file, contentType: contentType, content: content}
	}
	bytesRow := func(name, contentType string, body []byte, status int, want string) row {
		return row{name, http.MethodPost, "/pkcs12", http.Header{"Content-Type": {contentType}}, bytes.NewReader(body), status, want}
	}
	whole, contentType := form(name, curlFile(good))
	huge := make([]byte, 256<<10+1)
	const malformed = "the form is malformed or cut off"
	rows := []row{
		formed("as curl sends it", 200, taken, name, curlFile(good)),
		formed("the file alone", 200, taken, curlFile(good)),
		formed("the type that newer clients send", 200, taken, withType("application/x-pkcs12", "a.p12", good)),
		formed("a file without a type", 200, taken, withType("", "a.p12", good)),
		formed("a type without a file name", 200, taken, withType("application/octet-stream", "", good)),
		formed("a traversing file name", 200, taken, withType("application/octet-stream", "../../etc/passwd", good)),
		formed("text with a type", 200, taken, part{name: "note", contentType: "text/plain", content: []byte("x")}, curlFile(good)),
		bytesRow("the bytes themselves", "application/octet-stream", good, 200, taken),
		bytesRow("the bytes, by their type", "application/x-pkcs12", good, 200, taken),
		chunked(bytesRow("the bytes, unannounced", "application/octet-stream", good, 200, taken)),
		formed("no parts", 400, "the form holds no file"),
		formed("no file", 400, "the form holds no file", name),
		formed("two files", 400, "the form holds two files: send one PKCS#12 file", curlFile(good[:100]), curlFile(good[100:])),
		formed("the same file twice", 400, "the form holds two files: send one PKCS#12 file", curlFile(good), curlFile(good)),
		formed("nine parts", 400, "the form has more than 8 parts", name, name, name, name, name, name, name, name, curlFile(good)),
		formed("an HTML file", 415, "part 1 of the form is a file of another type: …", withType("text/html", "a.html", good)),
		formed("a type that is none", 400, "the Content-Type of part 2 of the form cannot be read", name, withType("a/b/c;;=", "", good)),
		formed("base64", 400, "part 1 of the form is encoded: send the file as it is", part{
			name: "file", file: "a.p12", contentType: "application/octet-stream", content: good,
			header: map[string][]string{"Content-Transfer-Encoding": {"base64"}},
		}),
		formed("an empty file", 400, "PKCS#12: it is empty", curlFile(nil)),
		formed("a text file", 400, "PKCS#12: it is not a PKCS#12 file in DER", curlFile([]byte(marker))),
		formed("a file that is too large", 413, "the PKCS#12 file is larger than 262144 bytes", curlFile(huge)),
		formed("a form that is too large", 413, "the body is larger than 278528 bytes", curlFile(append(huge, make([]byte, 64<<10)...))),
		formed("a text that is too large", 413, "the body is larger than 278528 bytes", part{name: "x", content: append(huge, make([]byte, 64<<10)...)}),
		bytesRow("bytes that are too many", "application/octet-stream", huge, 413, "the PKCS#12 file is larger than 262144 bytes"),
		chunked(bytesRow("bytes that are too many, unannounced", "application/octet-stream", append(huge, make([]byte, 64<<10)...), 413, "the PKCS#12 file is larger than 262144 bytes")),
		bytesRow("no boundary", "multipart/form-data", whole, 400, "the form has no boundary"),
		bytesRow("another boundary", "multipart/form-data; boundary=x", whole, 400, "the form holds no file"),
		bytesRow("cut off in the file", contentType, whole[:len(whole)/2], 400, malformed),
		bytesRow("cut off before the end", contentType, whole[:len(whole)-8], 400, malformed),
		bytesRow("no form at all", contentType, []byte("hello"), 400, "the form holds no file"),
		bytesRow("nothing", contentType, nil, 400, "the form holds no file"),
		bytesRow("a header without end", contentType, append(whole[:62:62], bytes.Repeat([]byte("\r\nX-A: b"), 20000)...), 400, malformed),
		bytesRow("nested forms", contentType, bytes.ReplaceAll(whole, []byte("application/octet-stream"), []byte("multipart/mixed; boundary=y")), 415, "part 2 of the form is a file of another type: …"),
	}
	return rows
}

// hostileFiles are uploads whose shape is wrong.
func hostileFiles(t testing.TB, good []byte) []row {
	file := func(name string, content []byte, want string) row {
		r := formed("file: "+name, 400, "PKCS#12: "+want, curlFile(content))
		return r
	}
	id := issue(t, nil)
	return []row{
		file("cut off", good[:len(good)-3], "it is not a PKCS#12 file in DER"),
		file("with more behind it", append(bytes.Clone(good), 1, 2, 3), "something follows the PKCS#12 file"),
		file("a certificate", id.leaf.Leaf.Raw, "it is not a PKCS#12 file in DER"),
		file("PEM", []byte("-----BEGIN PRIVATE KEY-----\n"), "it is not a PKCS#12 file in DER"),
		file("more iterations than anybody needs", must(gopkcs12.Modern2023.WithIterations(2_000_001).Encode(id.leaf.PrivateKey, id.leaf.Leaf, nil, "")), "its iteration count is not from 1 to 2000000"),
		file("a length of four gigabytes", []byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff}, "it is not a PKCS#12 file in DER"),
		file("zeros", make([]byte, 4096), "it is not a PKCS#12 file in DER"),
	}
}

func TestHostileConfiguration(t *testing.T) {
	w := newWorld(t, nil)
	good := p12(t, "", nil)
	rows := append(append(hostileJSON(), hostileHTTP()...), append(hostileForms(t, good), hostileFiles(t, good)...)...)
	// These come last: from here on there is a database.
	rows = append(rows, hostileURLs()...)
	if len(rows) < 150 {
		t.Errorf("%d rows, want at least 150", len(rows))
	}
	before := w.status(t)
	for _, tt := range rows {
		t.Run(tt.name, func(t *testing.T) {
			status, answer := w.do(tt.method, tt.path, tt.header, tt.body)
			var said struct {
				Success, Error *string
			}
			if err := json.Unmarshal([]byte(answer), &said); err != nil || strings.Contains(answer, "\n") {
				t.Fatalf("answer = %q, want one line of JSON (%v)", answer, err)
			}
			text := said.Error
			if status == http.StatusOK {
				text = said.Success
			}
			if text == nil || said.Error != nil && said.Success != nil {
				t.Fatalf("%d %s: want one of success and error", status, answer)
			}
			want, prefix := strings.CutSuffix(tt.want, "…")
			if status != tt.status || *text != want && !prefix || !strings.HasPrefix(*text, want) {
				t.Errorf("got %d %q, want %d %q", status, *text, tt.status, tt.want)
			}
			after := w.status(t)
			if status != http.StatusOK && after != before {
				t.Errorf("a refused request changed the status from %s to %s", before, after)
			}
			before = after
		})
	}
	if len(w.applied) > 0 || w.started() {
		t.Error("something was started")
	}
}

// status returns what GET /status says, but for the last error.
func (w *world) status(t *testing.T) string {
	t.Helper()
	status, answer := w.do(http.MethodGet, "/status", nil, nil)
	if status != http.StatusOK {
		t.Fatalf("GET /status = %d %s", status, answer)
	}
	before, after, _ := strings.Cut(answer, `"last_error":`)
	_, after, _ = strings.Cut(after, `",`)
	return before + after
}

// TestPKCS12OfEveryKindAtStart uploads files whose shape is right, and starts
// with them.
func TestPKCS12OfEveryKindAtStart(t *testing.T) {
	id, stranger := issue(t, nil), issue(t, nil)
	encode := func(cert *x509.Certificate, key any, password string) []byte {
		return must(gopkcs12.Modern2023.WithIterations(1000).Encode(key, cert, nil, password))
	}
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-30 * time.Minute) }
	client := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	tests := []struct {
		name     string
		file     []byte
		password string
		status   int
		want     string
	}{
		{"good", p12(t, "pass", nil), "pass", 200, "Starting the KMS server"},
		{"good, without a password", p12(t, "", nil), "", 200, "Starting the KMS server"},
		{"a wrong password", p12(t, "pass", nil), "word", 400, "PKCS#12: wrong password, or the file was changed"},
		{"no password where there is one", p12(t, "pass", nil), "", 400, "PKCS#12: wrong password, or the file was changed"},
		{"a password where there is none", p12(t, "", nil), "pass", 400, "PKCS#12: wrong password, or the file was changed"},
		{"a password that cannot be", p12(t, "pass", nil), "🔑", 400, "PKCS#12: the password has a character that passwords of such files cannot have"},
		{"not authenticated", must(gopkcs12.Passwordless.Encode(id.leaf.PrivateKey, id.leaf.Leaf, nil, "")), "", 400, "PKCS#12: it has no MAC, so nothing tells whether it was changed: export it anew with one"},
		{"certificates alone", must(gopkcs12.Modern2023.EncodeTrustStore([]*x509.Certificate{id.leaf.Leaf}, "pass")), "pass", 400, "PKCS#12: it holds no private key"},
		{"the key of another", encode(id.leaf.Leaf, stranger.leaf.PrivateKey, "pass"), "pass", 400, "PKCS#12: its key is not that of a certificate in it"},
		{"expired", p12(t, "pass", expired), "pass", 400, "PKCS#12: its certificate was valid until …"},
		{"for clients", p12(t, "pass", client), "pass", 400, "PKCS#12: its certificate is not meant for servers (no serverAuth in its extended key usage)"},
		{"a CA", p12(t, "pass", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), "pass", 400, "PKCS#12: its certificate is that of a certificate authority"},
		{"near its end", p12(t, "pass", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Hour) }), "pass", 200, "Starting the KMS server with warnings: The certificate in the PKCS#12 file expires on …"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.post("/sqlite", `{"path":"data"}`)
			if status, answer := w.upload(tt.file); status != 200 {
				t.Fatalf("POST /pkcs12 = %d %s, want 200: only its shape is looked at", status, answer)
			}
			w.post("/pkcs12-password", string(must(json.Marshal(map[string]string{"password": tt.password}))))
			status, answer := w.post("/start", `{}`)
			var said map[string]string
			if err := json.Unmarshal([]byte(answer), &said); err != nil {
				t.Fatal(err)
			}
			want, prefix := strings.CutSuffix(tt.want, "…")
			if text := said["success"] + said["error"]; status != tt.status || text != want && !prefix || !strings.HasPrefix(text, want) {
				t.Errorf("POST /start = %d %s, want %d %s", status, answer, tt.status, tt.want)
			}
			if w.started() != (tt.status == 200) {
				t.Errorf("started = %v", w.started())
			}
		})
	}
}

// TestSlowBodies announces a body and does not send it.
func TestSlowBodies(t *testing.T) {
	w := newWorldLimited(t, serve.Limits{ReadTime: 2 * time.Second, Grace: 5 * time.Second}, nil)
	for _, tt := range []struct{ name, path, contentType, begin string }{
		{"JSON", "/pkcs12-password", "application/json", `{"password":"`},
		{"a form", "/pkcs12", "multipart/form-data; boundary=x", "--x\r\nContent-Type: application/octet-stream\r\n\r\n0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := must(tls.Dial("tcp", w.addr, &tls.Config{RootCAs: w.roots, ServerName: "127.0.0.1"}))
			defer conn.Close()
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: 1000\r\n\r\n%s", tt.path, w.addr, tt.contentType, tt.begin)
			answer := string(must(io.ReadAll(conn)))
			if !strings.HasPrefix(answer, "HTTP/1.1 408 ") || !strings.HasSuffix(answer, `{"error":"the body did not arrive in time"}`) {
				t.Errorf("answer = %q, want 408", answer)
			}
		})
	}
}

// TestABodyThatEndsEarly closes its side before all that was announced is sent.
func TestABodyThatEndsEarly(t *testing.T) {
	w := newWorld(t, nil)
	conn := must(tls.Dial("tcp", w.addr, &tls.Config{RootCAs: w.roots, ServerName: "127.0.0.1"}))
	defer conn.Close()
	fmt.Fprintf(conn, "POST /start HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{}", w.addr)
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer := string(must(io.ReadAll(conn))); answer != "" && !strings.Contains(answer, "the body could not be read to its end") {
		t.Errorf("answer = %q", answer)
	}
	if w.started() {
		t.Error("half a request started the KMS")
	}
}

func TestPlainHTTPIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	conn := must(net.Dial("tcp", w.addr))
	defer conn.Close()
	fmt.Fprintf(conn, "POST /start HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
	if answer := string(must(io.ReadAll(conn))); !strings.HasPrefix(answer, "HTTP/1.0 400 ") {
		t.Errorf("answer = %q, want 400: TLS is spoken here", answer)
	}
}
