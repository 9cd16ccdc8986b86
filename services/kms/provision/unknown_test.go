package provision_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"unicode"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	provisionv1 "teekms/gen/provision/v1"
)

// rawCodec has a client send bytes as they are, under the name of an encoding.
type rawCodec struct {
	name string
	body []byte
}

func (c rawCodec) Name() string { return c.name }

func (c rawCodec) Marshal(any) ([]byte, error) { return c.body, nil }

func (c rawCodec) Unmarshal(data []byte, message any) error {
	if c.name == "proto" {
		return proto.Unmarshal(data, message.(proto.Message))
	}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, message.(proto.Message))
}

// face is a way to call the service: it sends the bytes of a message to a method
// and returns the text of the error, empty where there is none.
type face func(method string, body []byte) string

// posted is a face of plain HTTP.
func (w *world) posted(path, query, contentType string) face {
	return func(method string, body []byte) string {
		w.t.Helper()
		res, err := w.client.Post(w.url(path+method+query), contentType, bytes.NewReader(body))
		if err != nil {
			w.t.Fatal(err)
		}
		defer res.Body.Close()
		answer := must(io.ReadAll(res.Body))
		if res.StatusCode == http.StatusOK {
			return ""
		}
		if number, kind, n := protowire.ConsumeTag(answer); number == 1 && kind == protowire.BytesType {
			text, _ := protowire.ConsumeString(answer[n:]) // the binary form of an error
			return text
		}
		var said struct{ Error, Message string }
		if err := json.Unmarshal(answer, &said); err != nil {
			w.t.Errorf("%s = %d %s", method, res.StatusCode, answer)
		}
		return said.Error + said.Message
	}
}

// called is a face of a protocol that frames messages.
func (w *world) called(encoding string, protocol connect.ClientOption) face {
	return func(method string, body []byte) string {
		w.t.Helper()
		client := connect.NewClient[provisionv1.StartRequest, provisionv1.StartResponse](w.client,
			w.url("/provision.v1.Provision/"+method), protocol, connect.WithCodec(rawCodec{encoding, body}))
		_, err := client.CallUnary(w.t.Context(), connect.NewRequest(&provisionv1.StartRequest{}))
		if err == nil {
			return ""
		}
		e, ok := errors.AsType[*connect.Error](err)
		if !ok {
			w.t.Fatalf("%s = %v, want an answer of the server", method, err)
		}
		return e.Message()
	}
}

const (
	connectBase = "/provision.v1.Provision/"
	prpcBase    = "/prpc/Provision."
)

// protojsonFaces take what protobuf says that JSON is.
func (w *world) protojsonFaces() map[string]face {
	return map[string]face{
		"Connect":            w.posted(connectBase, "", "application/json"),
		"Connect, UTF-8":     w.posted(connectBase, "", "application/json; charset=utf-8"),
		"gRPC with JSON":     w.called("json", connect.WithGRPC()),
		"gRPC-Web with JSON": w.called("json", connect.WithGRPCWeb()),
	}
}

func (w *world) prpcFaces() map[string]face {
	return map[string]face{
		"prpc":                           w.posted(prpcBase, "?json", "text/plain"),
		"prpc by content type":           w.posted(prpcBase, "", "application/json"),
		"its encoding at Connect's path": w.posted(connectBase, "", "application/prpc-json"),
		"its encoding over gRPC":         w.called("prpc-json", connect.WithGRPC()),
	}
}

func (w *world) binaryFaces() map[string]face {
	return map[string]face{
		"Connect":  w.posted(connectBase, "", "application/proto"),
		"prpc":     w.posted(prpcBase, "", "application/octet-stream"),
		"gRPC":     w.called("proto", connect.WithGRPC()),
		"gRPC-Web": w.called("proto", connect.WithGRPCWeb()),
	}
}

// maxRefusal bounds what a refusal says, in bytes.
const maxRefusal = 256

// wantRefused sends a message to every face.
func wantRefused(t *testing.T, faces map[string]face, method, body, want string) {
	t.Helper()
	for name, call := range faces {
		text := call(method, []byte(body))
		if !strings.Contains(text, want) || len(text) > maxRefusal || strings.ContainsFunc(text, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsPrint(r) }) {
			t.Errorf("%s: %s %.100q = %.400q, want %q in little and printable text", name, method, body, text, want)
		}
	}
}

// TestUnknownFieldsAreRefused sends what an older KMS, or a finger that slipped,
// makes unknown: on no face may a password that is misspelled pass for none.
func TestUnknownFieldsAreRefused(t *testing.T) {
	w := newWorld(t, nil)
	long := strings.Repeat("x", 300<<10)
	for _, tt := range []struct{ name, method, body, want string }{
		{"a misspelled password", "SetDatabase", `{"sqlite_enc":{"path":"/x","master_pasword":"` + marker + `"}}`, `unknown field "master_pasword"`},
		{"the same before what is known", "SetDatabase", `{"sqlite_enc":{"master_pasword":"` + marker + `","path":"/x"}}`, `unknown field "master_pasword"`},
		{"beside the database", "SetDatabase", `{"sqlite":{"path":"/x"},"master_password":"` + marker + `"}`, `unknown field "master_password"`},
		{"the field of another database", "SetDatabase", `{"sqlite":{"path":"/x","master_password":"` + marker + `"}}`, `unknown field "master_password"`},
		{"another case", "SetDatabase", `{"sqlite_enc":{"path":"/x","Master_Password":"` + marker + `"}}`, `unknown field "Master_Password"`},
		{"with an object", "SetDatabase", `{"later":{"a":[1,{"b":null}]},"sqlite":{"path":"/x"}}`, `unknown field "later"`},
		{"with null", "SetDatabase", `{"sqlite":{"path":"/x","later":null}}`, `unknown field "later"`},
		{"twice", "SetDatabase", `{"sqlite":{"path":"/x"},"later":1,"later":2}`, `unknown field "later"`},
		{"escaped", "SetDatabase", `{"sqlite":{"path":"/x","lat\u0065r":1}}`, `unknown field "lat`},
		{"without a name", "SetDatabase", `{"":1,"sqlite":{"path":"/x"}}`, `unknown field ""`},
		{"the name of an extension", "SetDatabase", `{"[a.b]":1,"sqlite":{"path":"/x"}}`, `field`},
		{"a type", "SetDatabase", `{"@type":"a.b/C","sqlite":{"path":"/x"}}`, `unknown field "@type"`},
		{"300 KiB of a name", "SetDatabase", `{"sqlite":{"path":"/x","` + long + `":1}}`, `unknown field "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx`},
		{"a name for the terminal", "SetDatabase", `{"sqlite":{"path":"/x","` + "\u202e\u2028é\x7f" + `":1}}`, `unknown field "`},
		{"a name for the terminal, escaped", "SetDatabase", `{"sqlite":{"path":"/x","\u001b[31m\n\u0000":1}}`, `unknown field "\`},
		{"of the PKCS#12", "SetPkcs12", `{"pkcs12":"","file":""}`, `unknown field "file"`},
		{"of its password", "SetPkcs12Password", `{"pasword":"` + marker + `"}`, `unknown field "pasword"`},
		{"of the start", "Start", `{"clear_databse":true}`, `unknown field "clear_databse"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantRefused(t, w.protojsonFaces(), tt.method, tt.body, tt.want)
			wantRefused(t, w.prpcFaces(), tt.method, tt.body, tt.want)
		})
	}
	t.Run("1 MiB of a name", func(t *testing.T) {
		body := `{"` + strings.Repeat("x", 1<<20) + `":1}`
		wantRefused(t, w.protojsonFaces(), "SetDatabase", body, "larger than")
		wantRefused(t, w.prpcFaces(), "SetDatabase", body, "larger than")
	})
	t.Run("in camel case, which is not of prpc", func(t *testing.T) {
		wantRefused(t, w.prpcFaces(), "SetDatabase", `{"sqlite_enc":{"path":"/x","masterPassword":"`+marker+`"}}`, `sqlite_enc: unknown field "masterPassword"`)
	})
	t.Run("a known one twice", func(t *testing.T) {
		const body = `{"sqlite":{"path":"/x","path":"/y"}}`
		wantRefused(t, w.protojsonFaces(), "SetDatabase", body, `duplicate field "path"`)
		wantRefused(t, w.prpcFaces(), "SetDatabase", body, `sqlite.path: given twice`)
	})
	w.wantNothingTaken()
}

// TestNoValueIsRepeated sends a password in forms that cannot be read: what is said
// of them ends up in the logs of clients.
func TestNoValueIsRepeated(t *testing.T) {
	w := newWorld(t, nil)
	digits := "31415926535"
	for _, tt := range []struct{ name, body, protojson, prpc string }{
		{"without quotes", `{"password":` + marker + `}`, "syntax error (line 1:13)", "not JSON at byte 13"},
		{"a number", `{"password":` + digits + `}`, "invalid value for string field password", "password: want a string, not a number"},
		{"a list", `{"password":["` + marker + `"]}`, "invalid value for string field password", "password: want a string, not an array"},
		{"an object", `{"password":{"` + marker + `":1}}`, "invalid value for string field password", "password: want a string, not an object"},
		{"alone", `"` + marker + `"`, "syntax error (line 1:1)", "want a JSON object, not a string"},
		{"an escape that is none", `{"password":"` + marker + `\` + marker[:1] + `"}`, "syntax error (line 1:13)", "not JSON at byte"},
		{"cut off", `{"password":"` + marker, "unexpected EOF", "not JSON at byte"},
		{"after the object", `{"password":"x"}` + marker, "syntax error (line 1:17)", "not JSON at byte 17"},
		{"with a colon", `{"password":"x" "invalid value for ` + marker + `: "}`, "syntax error (line 1:17)", "not JSON at byte 17"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, faces := range []struct {
				of   map[string]face
				want string
			}{{w.protojsonFaces(), tt.protojson}, {w.prpcFaces(), tt.prpc}} {
				wantRefused(t, faces.of, "SetPkcs12Password", tt.body, faces.want)
				for name, call := range faces.of {
					if text := call("SetPkcs12Password", []byte(tt.body)); !strings.HasSuffix(text, faces.want) && faces.want != "not JSON at byte" ||
						strings.Contains(text, marker) || strings.Contains(text, digits) || strings.Contains(text, "character") {
						t.Errorf("%s: %s = %q, want nothing of the password", name, tt.body, text)
					}
				}
			}
		})
	}
	w.wantNothingTaken()
}

// wire encodes fields one after the other.
func wire(fields ...[]byte) string { return string(bytes.Join(fields, nil)) }

func wireText(number protowire.Number, text string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, number, protowire.BytesType), text)
}

func wireNumber(number protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.VarintType), v)
}

func TestUnknownBinaryFieldsAreRefused(t *testing.T) {
	w := newWorld(t, nil)
	const sqliteEnc = 5
	path := wireText(1, "/x")
	for _, tt := range []struct{ name, method, body, want string }{
		{"nested", "SetDatabase", wire(wireText(sqliteEnc, wire(path, wireText(9, marker)))), "sqlite_enc: unknown field 9"},
		{"at the top", "SetDatabase", wire(wireText(sqliteEnc, wire(path)), wireNumber(77, 1)), "request body: unknown field 77"},
		{"before what is known", "SetDatabase", wire(wireNumber(77, 1), wireText(sqliteEnc, wire(path))), "request body: unknown field 77"},
		{"the greatest", "SetDatabase", wire(wireText(sqliteEnc, wire(path)), wireNumber(protowire.MaxValidNumber, 1)), "request body: unknown field 536870911"},
		{"a password that is a number", "SetDatabase", wire(wireText(sqliteEnc, wire(path, wireNumber(2, 1)))), "sqlite_enc: unknown field 2"},
		{"300 KiB", "SetDatabase", wire(wireText(sqliteEnc, wire(path)), wireText(9, strings.Repeat("x", 300<<10))), "request body: unknown field 9"},
		{"a truth that is a text", "Start", wire(wireText(1, "true")), "request body: unknown field 1"},
		{"without fields", "GetStatus", wire(wireNumber(1, 1)), "request body: unknown field 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			faces := w.binaryFaces()
			if tt.method == "GetStatus" {
				delete(faces, "prpc") // which looks at no message without fields
			}
			wantRefused(t, faces, tt.method, tt.body, tt.want)
		})
	}
	w.wantNothingTaken()
}

// wantNothingTaken looks whether settings or a start were taken.
func (w *world) wantNothingTaken() {
	w.t.Helper()
	if _, answer := w.do(http.MethodGet, "/status", nil, nil); !strings.Contains(answer, `"phase":"configuring","database":null,"pkcs12_bytes":0,"pkcs12_password":false`) {
		w.t.Errorf("GET /status = %s, want nothing taken", answer)
	}
	if len(w.applied) != 0 {
		w.t.Errorf("a start was tried with %+v", w.applied)
	}
}

// TestKnownFieldsAreTakenByEveryFace sets every field of a message, by both names
// where there are two.
func TestKnownFieldsAreTakenByEveryFace(t *testing.T) {
	w := newWorld(t, nil)
	const text = `{"sqlite_enc":{"path":"/x","master_password":"` + marker + `"}}`
	camel := strings.NewReplacer("sqlite_enc", "sqliteEnc", "master_password", "masterPassword").Replace(text)
	binary := wire(wireText(5, wire(wireText(1, "/x"), wireText(2, marker))))
	for _, tt := range []struct {
		faces map[string]face
		body  string
	}{{w.protojsonFaces(), text}, {w.protojsonFaces(), camel}, {w.prpcFaces(), text}, {w.binaryFaces(), binary}} {
		for name, call := range tt.faces {
			if got := call("SetDatabase", []byte(tt.body)); got != "" {
				t.Errorf("%s: SetDatabase %q = %s, want it taken", name, tt.body, got)
			}
			if got := call("GetStatus", map[bool][]byte{true: []byte("{}")}[tt.body != binary]); got != "" {
				t.Errorf("%s: GetStatus = %s, want it answered", name, got)
			}
		}
	}
}
