package serve

import (
	"context"
	"io"
	"net/http"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
)

// health answers whether the process lives and whether the service can serve.
type health struct {
	service string
	ready   func() error
}

func (m *mux) mountHealth(c MuxConfig) {
	h := &health{service: string(c.Service.Descriptor.FullName()), ready: c.Ready}
	if h.ready == nil {
		h.ready = func() error { return nil }
	}
	m.plain.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		plainText(w, http.StatusOK, "OK")
	})
	m.plain.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if err := h.ready(); err != nil {
			plainText(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		plainText(w, http.StatusOK, "OK")
	})
	m.plain.Handle(grpchealth.NewHandler(h, c.Chain.Common()...))
}

// Check implements grpchealth.Checker: "" and the service's name are known.
func (h *health) Check(_ context.Context, req *grpchealth.CheckRequest) (*grpchealth.CheckResponse, error) {
	if req.Service != "" && req.Service != h.service {
		return nil, connect.NewError(connect.CodeNotFound, errUnknownService)
	}
	status := grpchealth.StatusServing
	if h.ready() != nil {
		status = grpchealth.StatusNotServing
	}
	return &grpchealth.CheckResponse{Status: status}, nil
}

type constError string

func (e constError) Error() string { return string(e) }

const errUnknownService = constError("unknown service")

func plainText(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // the client may be gone
}
