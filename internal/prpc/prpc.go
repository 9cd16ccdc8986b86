// Package prpc serves the HTTP dialect of existing dstack clients,
// /prpc/[Service.]Method, over Connect handlers: it rewrites the path, has the
// message coded by a [Codec] of its own, and gives errors their form
// (docs/wire.md#prpc).
//
// Make one [Codec] per service with [NewCodec], give it to the service's
// Connect handler with connect.WithCodec, and mount a [Handler] for both.
package prpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"teekms/internal/rpc"
)

// Prefix is the path below which the dialect is served.
const Prefix = "/prpc/"

// DefaultMaxBytes bounds a request body where [Config] does not, in bytes.
const DefaultMaxBytes = 1 << 20

// maxShownName bounds how much of an unknown method name is repeated.
const maxShownName = 64

const (
	contentJSON   = "application/json"
	contentBinary = "application/octet-stream"
)

// Config of a [Handler].
type Config struct {
	// Service is the service that is served. Required.
	Service protoreflect.ServiceDescriptor
	// Next is the service's Connect handler, made with Codec. Required.
	Next http.Handler
	// Codec is the service's codec. Required.
	Codec *Codec
	// MaxBytes bounds a request body; 0 means DefaultMaxBytes. It must not be
	// more than the Connect handler's own bound.
	MaxBytes int
	// Kept gives the answer of a procedure that has been encoded before, when
	// that procedure always answers the same; nil stands for no such answers.
	Kept func(ctx context.Context, procedure, codec string) ([]byte, bool)
}

// Handler serves one service below [Prefix]. Make it with [New]. It may be
// called from several goroutines.
type Handler struct {
	next    http.Handler
	strip   string
	max     int64
	kept    func(ctx context.Context, procedure, codec string) ([]byte, bool)
	methods map[string]*method
}

// method is one procedure and what a request for it becomes.
type method struct {
	name string
	// url is shared by all requests: Connect only reads it.
	url   *url.URL
	reads bool
	input *message
	// jsonType and binaryType are the values of the Content-Type header.
	jsonType, binaryType []string
}

// New returns the handler of one service.
func New(c Config) (*Handler, error) {
	if c.Service == nil || c.Next == nil || c.Codec == nil {
		return nil, errors.New("making a prpc handler: Service, Next and Codec are required")
	}
	h := &Handler{
		next: c.Next, strip: string(c.Service.Name()) + ".", max: int64(c.MaxBytes),
		kept: c.Kept, methods: make(map[string]*method),
	}
	if h.max <= 0 {
		h.max = DefaultMaxBytes
	}
	all := c.Service.Methods()
	for i := range all.Len() {
		md := all.Get(i)
		input, ok := c.Codec.messages[md.Input().FullName()]
		if !ok {
			return nil, fmt.Errorf("making a prpc handler: the codec does not know %s", md.Input().FullName())
		}
		options, _ := md.Options().(*descriptorpb.MethodOptions) // nil reads as no options
		h.methods[string(md.Name())] = &method{
			name:       string(md.Name()),
			url:        &url.URL{Path: fmt.Sprintf("/%s/%s", c.Service.FullName(), md.Name())},
			reads:      options.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS,
			input:      input,
			jsonType:   []string{"application/" + c.Codec.Name()},
			binaryType: []string{"application/proto"},
		}
	}
	return h, nil
}

// ServeHTTP serves /prpc/[Service.]Method.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := &writer{w: w, json: wantsJSON(r)}
	name := strings.TrimPrefix(r.URL.Path, Prefix)
	for strings.HasPrefix(name, h.strip) {
		name = name[len(h.strip):]
	}
	m, ok := h.methods[name]
	if !ok {
		if len(name) > maxShownName {
			name = name[:maxShownName]
		}
		out.fail(http.StatusBadRequest, "Service not found: "+strings.ToValidUTF8(name, "?"))
		return
	}
	if h.keptAnswer(out, r, m) {
		return
	}
	body, err := h.body(r, m)
	if err != nil {
		var refused *verbError
		if errors.As(err, &refused) {
			w.Header().Set("Allow", refused.allow)
		}
		out.fail(http.StatusBadRequest, err.Error())
		return
	}
	h.next.ServeHTTP(out, rewrite(r, m, body, out.json))
	out.finish()
}

// keptAnswer answers a call without arguments with bytes that were made before.
func (h *Handler) keptAnswer(out *writer, r *http.Request, m *method) bool {
	if h.kept == nil || len(m.input.fields) != 0 || r.Method != http.MethodPost && (r.Method != http.MethodGet || !m.reads) {
		return false
	}
	codec := "proto"
	if out.json {
		codec = codecName
	}
	answer, ok := h.kept(r.Context(), m.url.Path, codec)
	if ok {
		_, _ = out.Write(answer) // the client may be gone
	}
	return ok
}

// wantsJSON tells which encoding a request is in, and its answer with it: GET
// is always JSON, POST is when its query or its content type says so.
func wantsJSON(r *http.Request) bool {
	if r.Method != http.MethodPost {
		return true
	}
	if r.URL.RawQuery == "json" { // what every client sends
		return true
	}
	for pair := range strings.SplitSeq(r.URL.RawQuery, "&") {
		if key, value, _ := strings.Cut(pair, "="); key == "json" {
			if value == "" || value == "1" || value == "true" {
				return true
			}
			break // the first one counts
		}
	}
	contentType := r.Header.Get("Content-Type")
	if contentType == "" || contentType == contentJSON {
		return contentType != ""
	}
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && media == contentJSON
}

// verbError refuses a verb and says which ones there are.
type verbError struct{ text, allow string }

func (e *verbError) Error() string { return e.text }

// body returns the encoded request message of r; nil stands for a message with
// every field at its default.
func (h *Handler) body(r *http.Request, m *method) ([]byte, error) {
	switch r.Method {
	case http.MethodPost:
	case http.MethodGet, http.MethodHead:
		if !m.reads {
			return nil, &verbError{text: m.name + " has side effects: use POST", allow: http.MethodPost}
		}
		return queryBody(r.URL.RawQuery, m.input)
	default:
		allow := http.MethodPost
		if m.reads {
			allow = "GET, HEAD, POST"
		}
		return nil, &verbError{text: m.name + " is not served by " + printable(r.Method) + ": use POST", allow: allow}
	}
	if len(m.input.fields) == 0 {
		return nil, nil // whatever it is: some clients send the text null
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return nil, errors.New("request body: a compressed body is not accepted: send it without Content-Encoding")
	}
	return h.read(r)
}

// read returns the body of r within the bound. Memory grows with what arrives,
// not with what Content-Length promises.
func (h *Handler) read(r *http.Request) ([]byte, error) {
	tooLarge := fmt.Errorf("request body: larger than %d bytes", h.max)
	if r.ContentLength > h.max {
		return nil, tooLarge
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, h.max+1))
	if errors.Is(err, rpc.ErrBusy) {
		return nil, rpc.ErrBusy
	}
	if err != nil {
		return nil, errors.New("request body: could not be read to its end")
	}
	if int64(len(b)) > h.max {
		return nil, tooLarge
	}
	return b, nil
}

// rewrite makes the Connect request for r. Headers that speak of the encoding
// or to Connect itself stay behind.
func rewrite(r *http.Request, m *method, body []byte, asJSON bool) *http.Request {
	header := make(http.Header, len(r.Header)+1)
	for key, values := range r.Header {
		switch {
		case key == "Accept-Encoding", key == "Content-Encoding", key == "Content-Length":
		case strings.HasPrefix(key, "Connect-"), strings.HasPrefix(key, "Grpc-"):
		default:
			header[key] = values
		}
	}
	header["Content-Type"] = m.binaryType
	if asJSON {
		header["Content-Type"] = m.jsonType
	}
	out := new(http.Request)
	*out = *r
	out.Method, out.URL, out.Header = http.MethodPost, m.url, header
	out.ContentLength = int64(len(body))
	out.Body, out.TransferEncoding = http.NoBody, nil
	if len(body) > 0 {
		out.Body = newBody(body)
	}
	return out
}

func printable(verb string) string {
	if len(verb) > 16 {
		verb = verb[:16]
	}
	return strings.ToValidUTF8(verb, "?")
}
