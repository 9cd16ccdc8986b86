package rpc

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
)

// Encodings remembers the one answer that a procedure always gives, encoded
// once per codec. The zero value is ready; nil remembers nothing. Its methods
// may be called from several goroutines.
type Encodings struct {
	kept atomic.Pointer[kept]
}

// kept is an answer and its encodings, by the name of the codec.
type kept struct {
	procedure string
	message   any
	// until is when the service wants to be asked again; zero means never.
	until   time.Time
	encoded sync.Map // string to []byte; a race writes the same bytes twice
}

// Keep says that procedure, which takes no arguments, answers m until Keep is
// called again, and that m will not be changed any more.
func (e *Encodings) Keep(procedure string, m proto.Message) {
	e.KeepUntil(procedure, m, time.Time{})
}

// KeepUntil is Keep for an answer that the service wants to look at again: from
// that time on calls reach it, and its answer is still encoded only once. The
// zero time means never.
func (e *Encodings) KeepUntil(procedure string, m proto.Message, until time.Time) {
	next := &kept{procedure: procedure, message: m, until: until}
	if last := e.kept.Load(); last != nil && last.message == any(m) {
		last.encoded.Range(func(codec, bytes any) bool {
			next.encoded.Store(codec, bytes)
			return true
		})
	}
	e.kept.Store(next)
}

// Codec returns c with the memory of e.
func (e *Encodings) Codec(c Codec) Codec {
	if e == nil {
		return c
	}
	return &keptCodec{Codec: c, name: c.Name(), encodings: e}
}

func (k *kept) load(codec string) ([]byte, bool) {
	v, ok := k.encoded.Load(codec)
	if !ok {
		return nil, false
	}
	b, ok := v.([]byte)
	return b, ok
}

// keptCodec looks for the message it is given in the memory first.
type keptCodec struct {
	Codec
	name      string
	encodings *Encodings
}

func (c *keptCodec) MarshalAppend(dst []byte, message any) ([]byte, error) {
	k := c.encodings.kept.Load()
	if k == nil || k.message != message {
		return c.Codec.MarshalAppend(dst, message)
	}
	b, ok := k.load(c.name)
	if !ok {
		var err error
		if b, err = c.Codec.MarshalAppend(nil, message); err != nil {
			return nil, err
		}
		k.encoded.Store(c.name, b)
	}
	return append(dst, b...), nil
}

func (c *keptCodec) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

// Kept returns the encoded answer to procedure when it is one that e keeps, has
// been encoded by that codec before, and is open to everybody. It then counts
// as the answer of the call that ctx belongs to. The bytes must not be changed.
//
// A client with a certificate gets nothing from here where callers are
// admitted: if its Evidence does not hold, every call of it fails.
func (c *Chain) Kept(ctx context.Context, e *Encodings, procedure, codec string) ([]byte, bool) {
	if e == nil {
		return nil, false
	}
	k := e.kept.Load()
	if k == nil || k.procedure != procedure {
		return nil, false
	}
	if guard, listed := c.access[procedure]; !listed || guard != nil {
		return nil, false
	}
	call := c.callOf(ctx)
	if c.admit != nil && (!call.wrapped || call.certified) || !k.until.IsZero() && !call.start.Before(k.until) {
		return nil, false
	}
	b, ok := k.load(codec)
	if !ok {
		return nil, false
	}
	call.procedure, call.reads = procedure, true
	call.code, call.coded = 0, true
	return b, true
}

// WithKept answers the plainest form of a Connect call, POST of an empty
// message, with what e keeps, and leaves every other request to next. Connect
// takes longer to unpack such a call than net/http takes to serve it.
func (c *Chain) WithKept(next http.Handler, e *Encodings) http.Handler {
	if e == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		codec, ok := plainCall(r)
		if !ok || r.ContentLength > 0 && !emptyObject(r) {
			next.ServeHTTP(w, r)
			return
		}
		answer, ok := c.Kept(r.Context(), e, r.URL.Path, codec)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		h := w.Header()
		h["Content-Type"] = r.Header["Content-Type"]
		h["Content-Length"] = []string{strconv.Itoa(len(answer))}
		_, _ = w.Write(answer) //nolint:gosec // bytes of our own, under a content type checked above; the client may be gone
	})
}

// plainCall tells whether r can only be a Connect unary call without options,
// and names its codec.
func plainCall(r *http.Request) (codec string, ok bool) {
	h := r.Header
	if r.Method != http.MethodPost || len(h["Content-Type"]) != 1 ||
		len(h["Content-Encoding"]) != 0 || len(h["Connect-Timeout-Ms"]) != 0 {
		return "", false
	}
	if v := h["Connect-Protocol-Version"]; len(v) > 0 && v[0] != "1" {
		return "", false
	}
	switch h["Content-Type"][0] {
	case "application/json":
		return "json", r.ContentLength == int64(len("{}"))
	case "application/proto":
		return "proto", r.ContentLength == 0
	default:
		return "", false
	}
}

// emptyObject tells whether the body, of two bytes, is {}, and leaves it unread.
func emptyObject(r *http.Request) bool {
	var b [2]byte
	n, err := io.ReadFull(r.Body, b[:])
	r.Body = &unread{ReadCloser: r.Body, read: b[:n]}
	return err == nil && string(b[:]) == "{}"
}

// unread is a body of which some has been read already.
type unread struct {
	io.ReadCloser
	read []byte
}

func (u *unread) Read(p []byte) (int, error) {
	if len(u.read) > 0 {
		n := copy(p, u.read)
		u.read = u.read[n:]
		return n, nil
	}
	return u.ReadCloser.Read(p)
}
