package rpc

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
)

// ErrBusy ends a call that had not had its turn, for want of room.
var ErrBusy = errors.New("too many unfinished calls: try again")

// Figures of the intake, in bytes.
const (
	// DefaultPending bounds what the calls before their turn hold.
	DefaultPending = 128 << 20
	// minPending is how many messages of the greatest size that is at least.
	minPending = 8
	// callCost is what a call holds beside its header and its message: a
	// goroutine, and what net/http keeps of a request.
	callCost = 16 << 10
)

// lostTime is how long a client has for the answer that its call is lost.
const lostTime = time.Second

// intake bounds what the calls of a listener hold before they get their turn:
// their headers, their messages as far as these have arrived, and what a call
// itself costs. Where that is more than the limit, the connection that holds the
// most loses all of its calls that have not had their turn.
//
// So nobody waits for a slow sender, and no number of slow senders keeps others
// out: of n connections, one that holds less than an n-th of the limit is never
// the one that loses.
type intake struct {
	limit int

	mu      sync.Mutex
	held    int                // by all of them; guarded by mu
	holders map[string]*holder // by remote address; guarded by mu
}

// holder is a connection with calls before their turn. The mutex of the intake
// guards it.
type holder struct {
	held  int
	calls map[*pending]struct{}
}

// pending is what the intake knows of a call. That of a call without an intake
// costs nothing.
type pending struct {
	in      *intake
	w       http.ResponseWriter
	request *http.Request

	// The mutex of the intake guards what follows.

	of      *holder // nil while nothing is held
	held    int
	reading bool          // it has to be woken where it is lost
	lost    bool          // never unset
	told    chan struct{} // closed when it is lost; nil while nobody waits
}

// body is the body of a request, whose bytes are counted as they arrive.
type body struct {
	io.ReadCloser
	pending *pending
	// ahead is how many bytes the first Read takes in before it returns any: a
	// handler that keeps its buffers would hold one of any size while it waits.
	ahead int
	taken []byte
	end   error
}

// Read implements io.Reader.
func (b *body) Read(buf []byte) (int, error) {
	if b.ahead > 0 {
		b.take()
	}
	if len(b.taken) > 0 {
		n := copy(buf, b.taken)
		b.taken = b.taken[n:]
		return n, nil
	}
	if b.taken = nil; b.end != nil {
		return 0, b.end
	}
	return b.read(buf)
}

// firstRead is how much room a message has at first, in bytes.
const firstRead = 512

// take reads ahead. Memory grows with what arrives.
func (b *body) take() {
	b.taken = make([]byte, 0, firstRead)
	for len(b.taken) < b.ahead && b.end == nil {
		b.taken = slices.Grow(b.taken, 1)
		var n int
		n, b.end = b.read(b.taken[len(b.taken):cap(b.taken)])
		b.taken = b.taken[:len(b.taken)+n]
	}
	b.ahead = 0
}

// read reads from the connection.
func (b *body) read(buf []byte) (n int, err error) {
	ok := b.pending.hold(0, true)
	if ok {
		n, err = b.ReadCloser.Read(buf)
		ok = b.pending.hold(n, false)
	}
	if !ok {
		b.taken = nil
		b.pending.hurry()
		return 0, connect.NewError(connect.CodeResourceExhausted, ErrBusy) // a code that Connect passes on
	}
	return n, err
}

// hold counts n more bytes of the message, notes whether the call is about to
// read, and returns false when it is lost.
func (p *pending) hold(n int, reads bool) bool {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	p.reading = false
	p.in.charge(p, n)
	p.reading = reads
	return !p.lost
}

// wait counts the call while it waits for its turn. The channel is closed when
// it is lost; it is nil where nobody counts.
func (p *pending) wait() <-chan struct{} {
	if p.in == nil {
		return nil
	}
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	told := make(chan struct{})
	p.told = told
	if p.lost {
		close(told)
	} else {
		p.in.charge(p, 0)
	}
	return told
}

// hurry gives the client of a call that is lost little time to take the answer,
// which takes room too.
func (p *pending) hurry() {
	_ = http.NewResponseController(p.w).SetWriteDeadline(time.Now().Add(lostTime)) //nolint:forbidigo // the network's clock; else the deadline of the listener stands
}

// release ends the counting: the call has its turn, or is over.
func (p *pending) release() {
	if p.in == nil {
		return
	}
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	p.in.drop(p)
}

// charge counts n more bytes of a call, beside what the call itself costs, and
// makes room where there is none. Without calls nothing is held, so there always
// is one to lose.
func (i *intake) charge(p *pending, n int) {
	if p.lost {
		return
	}
	if p.of == nil {
		n += callCost + headerBytes(p.request.Header)
		p.of = i.holder(p.request.RemoteAddr)
		p.of.calls[p] = struct{}{}
	}
	p.held += n
	p.of.held += n
	i.held += n
	for i.held > i.limit {
		i.largest().lose(i)
	}
}

func (i *intake) holder(addr string) *holder {
	h, ok := i.holders[addr]
	if !ok {
		h = &holder{calls: make(map[*pending]struct{}, 1)}
		i.holders[addr] = h
	}
	return h
}

// drop forgets a call and what it holds.
func (i *intake) drop(p *pending) {
	if p.of == nil {
		return
	}
	i.held -= p.held
	p.of.held -= p.held
	delete(p.of.calls, p)
	if len(p.of.calls) == 0 {
		delete(i.holders, p.request.RemoteAddr)
	}
	p.of, p.held = nil, 0
}

func (i *intake) largest() *holder {
	var most *holder
	for _, h := range i.holders {
		if most == nil || h.held > most.held {
			most = h
		}
	}
	return most
}

// lose ends the calls of a connection. They have not returned yet, so their
// requests may still be touched: drop comes before that, under the same mutex.
func (h *holder) lose(i *intake) {
	for p := range h.calls {
		p.lost = true
		i.drop(p)
		if p.reading { // else a later use of the connection would fail
			_ = http.NewResponseController(p.w).SetReadDeadline(time.Unix(1, 0)) // it reads until its time is over
		}
		if p.told != nil {
			close(p.told)
		}
	}
}

// headerBytes is the size of a header.
func headerBytes(h http.Header) int {
	n := 0
	for key, values := range h {
		n += len(key)
		for _, v := range values {
			n += len(v)
		}
	}
	return n
}
