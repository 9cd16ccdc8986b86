package serve

import (
	"errors"
	"net"
	"net/http"
	"sync"
)

// conns knows the connections of a server that have no call in flight, and
// bounds how many there are at all.
type conns struct {
	slots chan struct{}

	mu sync.Mutex
	// quiet are the connections that are new or idle; guarded by mu.
	quiet map[net.Conn]struct{}
}

func newConns(limit int) *conns {
	return &conns{slots: make(chan struct{}, limit), quiet: make(map[net.Conn]struct{})}
}

// track is http.Server.ConnState.
func (c *conns) track(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if state == http.StateNew || state == http.StateIdle {
		c.quiet[conn] = struct{}{}
		return
	}
	delete(c.quiet, conn)
}

// closeQuiet closes the connections that have no call in flight.
func (c *conns) closeQuiet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.quiet {
		_ = conn.Close() // it is given up either way
	}
}

// limit returns l bounded to the number of slots.
func (c *conns) limit(l net.Listener) net.Listener {
	return &limitListener{Listener: l, slots: c.slots, closed: make(chan struct{})}
}

// limitListener accepts a connection when there is a slot for it. Until then it
// waits in the kernel's queue, where it costs this process nothing.
type limitListener struct {
	net.Listener
	slots  chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitConn{Conn: conn, slots: l.slots}, nil
}

func (l *limitListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// limitConn gives its slot back when it is closed.
type limitConn struct {
	net.Conn
	once  sync.Once
	slots chan struct{}
}

func (c *limitConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.slots })
	return err
}

// CloseWrite lets net/http say goodbye before it closes: an answer to a request
// whose body was not read would be lost otherwise.
func (c *limitConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}
