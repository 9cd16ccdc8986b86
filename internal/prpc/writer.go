package prpc

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// maxErrorBytes bounds how much of Connect's error is held before it is
// rewritten.
const maxErrorBytes = 64 << 10

type body struct{ bytes.Reader }

func (*body) Close() error { return nil }

func newBody(b []byte) io.ReadCloser {
	r := new(body)
	r.Reset(b)
	return r
}

// writer gives Connect's answer the form of this dialect: a success passes with
// the content type changed, an error is held back and rewritten by finish.
type writer struct {
	w      http.ResponseWriter
	json   bool
	status int
	held   []byte
}

func (o *writer) Header() http.Header { return o.w.Header() }

// Unwrap serves http.ResponseController.
func (o *writer) Unwrap() http.ResponseWriter { return o.w }

func (o *writer) WriteHeader(status int) {
	if o.status != 0 {
		return
	}
	o.status = status
	if status == http.StatusOK {
		o.head()
		o.w.WriteHeader(status)
	}
}

func (o *writer) Write(p []byte) (int, error) {
	if o.status == 0 {
		// Connect writes a message in one piece.
		o.w.Header()["Content-Length"] = []string{strconv.Itoa(len(p))}
		o.WriteHeader(http.StatusOK)
	}
	if o.status == http.StatusOK {
		return o.w.Write(p)
	}
	if room := maxErrorBytes - len(o.held); room > 0 {
		o.held = append(o.held, p[:min(len(p), room)]...)
	}
	return len(p), nil
}

// Values of headers that every answer has; net/http only reads them.
//
//nolint:gochecknoglobals // constants in all but name
var (
	jsonValue    = []string{contentJSON}
	binaryValue  = []string{contentBinary}
	noStoreValue = []string{"no-store"}
	noSniffValue = []string{"nosniff"}
)

// head replaces what Connect says of the encoding.
func (o *writer) head() {
	h := o.w.Header()
	delete(h, "Accept-Encoding")
	h["Cache-Control"] = noStoreValue
	if o.json {
		h["Content-Type"] = jsonValue
	} else {
		h["Content-Type"] = binaryValue
	}
}

// finish rewrites the error that was held back, if there was one.
func (o *writer) finish() {
	switch o.status {
	case http.StatusOK:
		return
	case 0: // an empty message, whose encoding is no bytes at all
		o.WriteHeader(http.StatusOK)
		return
	}
	status, text := http.StatusBadRequest, "internal error"
	var wire struct {
		Message string `json:"message"`
	}
	if err := json.Unmarshal(o.held, &wire); err == nil && wire.Message != "" {
		text = strings.TrimPrefix(wire.Message, "unmarshal message: ") // Connect's, before the codec's sentence
	}
	if o.status == http.StatusUnauthorized {
		status = http.StatusUnauthorized
	}
	o.fail(status, text)
}

// fail answers with an error in the encoding of the request.
func (o *writer) fail(status int, text string) {
	o.status = status
	o.head()
	o.w.Header()["X-Content-Type-Options"] = noSniffValue
	o.w.WriteHeader(status)
	_, _ = o.w.Write(ErrorBody(text, o.json)) //nolint:gosec // JSON or protobuf, never to be sniffed; the client may be gone
}

// ErrorBody returns the body of an error: {"error": "..."} on one line, or a
// protobuf message whose field 1 is the text.
func ErrorBody(text string, asJSON bool) []byte {
	if !asJSON {
		return protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), strings.ToValidUTF8(text, "?"))
	}
	return append(appendString([]byte(`{"error": `), text), '}')
}
