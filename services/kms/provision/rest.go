package provision

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	provisionv1 "teekms/gen/provision/v1"
	"teekms/internal/rpc"
)

// Bounds of request bodies, in bytes.
const (
	maxJSON   = 64 << 10
	maxUpload = 256 << 10
	// maxForm leaves room for the rest of a form around an upload.
	maxForm = maxUpload + 16<<10
)

// httpError refuses a request before any operation has seen it.
type httpError struct {
	status int
	text   string
}

func (e *httpError) Error() string { return e.text }

func refuse(status int, text string) error { return &httpError{status, text} }

// route is a REST route: the thin face of one operation.
type route struct {
	// limit bounds the body, in bytes.
	limit int64
	// accepts are the media types that it takes.
	accepts []string
	// serve reads the body, calls the operation, and returns what it says.
	serve func(ctx context.Context, body io.Reader, media string, params map[string]string) (success string, err error)
}

// pages are the REST routes by path, and the answer to all other paths.
func (s *Server) pages() map[string]http.Handler {
	pages := map[string]http.Handler{
		"/status": http.HandlerFunc(s.serveStatus),
		"/": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			writeError(w, http.StatusNotFound, "there is nothing at this path")
		}),
		"/pkcs12": s.post(route{limit: maxForm, accepts: uploadTypes, serve: s.servePKCS12}),
	}
	for path, members := range map[string]jsonRoute{
		"/redis-findex":    s.redisRoute,
		"/postgresql":      s.postgresRoute,
		"/mysql":           s.mysqlRoute,
		"/sqlite":          s.sqliteRoute,
		"/sqlite-enc":      s.sqliteEncRoute,
		"/sqlite-ec":       s.sqliteEncRoute, // as some tutorials spell it
		"/pkcs12-password": s.passwordRoute,
		"/start":           s.startRoute,
	} {
		pages[path] = s.post(route{limit: maxJSON, accepts: []string{"application/json"}, serve: members.serve})
	}
	return pages
}

// post serves a route: the method, the caller and the headers are looked at
// before any of the body is read.
func (s *Server) post(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			writeError(w, http.StatusMethodNotAllowed, r.URL.Path+" takes POST")
			return
		}
		k := s.know(r, true)
		if k.err != nil {
			s.fail(w, r, k.err)
			return
		}
		media, params, err := rt.checkHeader(r)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		body := &bodyReader{from: http.MaxBytesReader(w, r.Body, rt.limit), limit: rt.limit}
		success, err := rt.serve(context.WithValue(r.Context(), knownKey{}, k), body, media, params)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		quoted, _ := json.Marshal(success) // a string always marshals
		write(w, http.StatusOK, []byte(`{"success":`+string(quoted)+`}`))
	})
}

// checkHeader refuses what need not be read.
func (rt *route) checkHeader(r *http.Request) (media string, params map[string]string, err error) {
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return "", nil, refuse(http.StatusUnsupportedMediaType, "a compressed body is not accepted: send it without Content-Encoding")
	}
	media, params, err = mime.ParseMediaType(r.Header.Get("Content-Type"))
	accepted := false
	for _, want := range rt.accepts {
		accepted = accepted || media == want
	}
	charset, given := params["charset"]
	if err != nil || !accepted || given && !strings.EqualFold(charset, "utf-8") {
		return "", nil, refuse(http.StatusUnsupportedMediaType, "Content-Type must be "+strings.Join(rt.accepts, " or "))
	}
	if r.ContentLength > rt.limit {
		return "", nil, tooLarge(rt.limit)
	}
	return media, params, nil
}

func tooLarge(limit int64) error {
	return refuse(http.StatusRequestEntityTooLarge, "the body is larger than "+strconv.FormatInt(limit, 10)+" bytes")
}

// bodyReader gives the errors of reading a body their status.
type bodyReader struct {
	from  io.Reader
	limit int64
}

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	if err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return n, err
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return n, tooLarge(b.limit)
	}
	if errors.Is(err, rpc.ErrBusy) {
		return n, refuse(http.StatusServiceUnavailable, rpc.ErrBusy.Error())
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return n, refuse(http.StatusRequestTimeout, "the body did not arrive in time")
	}
	return n, refuse(http.StatusBadRequest, "the body could not be read to its end")
}

// fail answers with the status and the text of an error.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if e, ok := errors.AsType[*httpError](err); ok {
		writeError(w, e.status, e.text)
		return
	}
	code, text, mapped := s.errors.Lookup(err)
	switch {
	case r.Context().Err() != nil:
		writeError(w, http.StatusBadRequest, "the call was canceled")
	case !mapped:
		id := rpc.RequestID(r.Context())
		s.cfg.Log.Error("request failed", zap.String("request_id", id), zap.NamedError("err", err))
		writeError(w, http.StatusInternalServerError, "internal error (id "+id+")")
	case code == connect.CodeUnauthenticated:
		if s.token != nil {
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
		writeError(w, http.StatusUnauthorized, text)
	default:
		writeError(w, http.StatusBadRequest, text)
	}
}

// serveStatus is GetStatus.
func (s *Server) serveStatus(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		writeError(w, http.StatusMethodNotAllowed, "/status takes GET")
		return
	}
	k := s.knowReader(r)
	if k.err != nil {
		s.fail(w, r, k.err)
		return
	}
	status, err := s.GetStatus(context.WithValue(r.Context(), knownKey{}, k), &provisionv1.GetStatusRequest{})
	if err == nil {
		var body []byte
		if body, err = s.json.Marshal(status); err == nil {
			write(w, http.StatusOK, body)
			return
		}
	}
	s.fail(w, r, err)
}

func writeError(w http.ResponseWriter, status int, text string) {
	quoted, _ := json.Marshal(text) // a string always marshals
	write(w, status, []byte(`{"error":`+string(quoted)+`}`))
}

// write answers with JSON on one line, never to be cached.
func write(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
}
