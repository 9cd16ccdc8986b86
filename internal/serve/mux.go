package serve

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"
	"google.golang.org/protobuf/reflect/protoreflect"

	"teekms/internal/prpc"
	"teekms/internal/rpc"
)

// Service is one RPC service and how it is served.
type Service struct {
	// Descriptor describes it. Required.
	Descriptor protoreflect.ServiceDescriptor
	// New makes its Connect handler: a closure over the generated constructor
	// and the implementation. Required.
	New func(...connect.HandlerOption) (path string, h http.Handler)
	// HexPrefix is what bytes are written with in prpc JSON, "0x" or nothing.
	HexPrefix string
	// Encodings remembers its unchanging answers; nil remembers none.
	Encodings *rpc.Encodings
}

// MuxConfig configures [NewMux].
type MuxConfig struct {
	// Service is served by Connect, gRPC, gRPC-Web and prpc. Required.
	Service Service
	// Chain is what every call passes through. Required.
	Chain *rpc.Chain
	// Ready tells why the server cannot serve; nil, or a nil error, means that
	// it can. The text of the error is shown to anybody at /ready.
	Ready func() error
	// Metrics is served at /metrics; nil means none is.
	Metrics http.Handler
	// Pages are plain HTTP handlers, by ServeMux pattern: "/", "GET /finish".
	Pages map[string]http.Handler
	// GetAsPost are the paths of those that change something on GET.
	GetAsPost []string
	// Header is added to every answer.
	Header map[string]string
}

// NewMux returns the one handler of a listener.
//
// Beside the service it answers /health (200 "OK"), /ready (200, or 503 and the
// reason), gRPC health and reflection. Everything passes through the chain and
// the check for cross-origin requests.
func NewMux(c MuxConfig) (http.Handler, error) {
	if c.Chain == nil || c.Service.Descriptor == nil || c.Service.New == nil {
		return nil, errors.New("making the mux: Chain, Service.Descriptor and Service.New are required")
	}
	m := &mux{plain: http.NewServeMux()}
	for k, v := range c.Header {
		m.header = append(m.header, headerLine{key: http.CanonicalHeaderKey(k), value: []string{v}})
	}
	if err := m.mountService(c); err != nil {
		return nil, err
	}
	m.mountHealth(c)
	m.mountReflection(c)
	if c.Metrics != nil {
		m.plain.Handle("GET /metrics", c.Metrics)
	}
	for pattern, page := range c.Pages {
		m.plain.Handle(pattern, page)
	}
	return c.Chain.Wrap(rpc.CrossOrigin(m, c.GetAsPost...)), nil
}

// mux routes the two paths of RPC itself, because they are hot and known, and
// leaves the rest to an http.ServeMux.
type mux struct {
	header      []headerLine
	connectPath string
	connect     http.Handler
	prpc        http.Handler
	plain       *http.ServeMux
}

// headerLine is a header of every answer, ready to be put into its map.
type headerLine struct {
	key   string
	value []string
}

func (m *mux) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, line := range m.header {
		w.Header()[line.key] = line.value
	}
	switch {
	case strings.HasPrefix(r.URL.Path, prpc.Prefix):
		m.prpc.ServeHTTP(w, r)
	case strings.HasPrefix(r.URL.Path, m.connectPath):
		m.connect.ServeHTTP(w, r)
	default:
		m.plain.ServeHTTP(w, r)
	}
}

func (m *mux) mountService(c MuxConfig) error {
	codec, err := prpc.NewCodec(c.Service.Descriptor, c.Service.HexPrefix)
	if err != nil {
		return fmt.Errorf("making the mux: %w", err)
	}
	options := append(c.Chain.Options(c.Service.Encodings), connect.WithCodec(c.Service.Encodings.Codec(codec)))
	m.connectPath, m.connect = c.Service.New(options...)
	m.prpc, err = prpc.New(prpc.Config{
		Service: c.Service.Descriptor, Next: m.connect, Codec: codec, MaxBytes: c.Chain.ReadMaxBytes(),
		Kept: func(ctx context.Context, procedure, codec string) ([]byte, bool) {
			return c.Chain.Kept(ctx, c.Service.Encodings, procedure, codec)
		},
	})
	m.connect = rpc.CheckQuery(c.Chain.WithKept(m.connect, c.Service.Encodings))
	return err
}

func (m *mux) mountReflection(c MuxConfig) {
	reflector := grpcreflect.NewStaticReflector(string(c.Service.Descriptor.FullName()), grpchealth.HealthV1ServiceName)
	m.plain.Handle(grpcreflect.NewHandlerV1(reflector, c.Chain.Common()...))
	m.plain.Handle(grpcreflect.NewHandlerV1Alpha(reflector, c.Chain.Common()...))
}
