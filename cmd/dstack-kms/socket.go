package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"teekms/cmd/internal/node"
)

// socket is a listening socket that one server after another accepts from. In
// between, connections wait in the kernel's queue: nobody is refused.
type socket struct {
	*net.TCPListener

	mu sync.Mutex
	// kept were accepted for a server that had gone by then; guarded by mu.
	kept []net.Conn
}

func newSocket(ctx context.Context, address string, port uint16) (*socket, error) {
	l, err := node.Listen(ctx, address, port)
	if err != nil {
		return nil, err
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		_ = l.Close() // it is of no use
		return nil, fmt.Errorf("listening on %s: a %T", l.Addr(), l)
	}
	return &socket{TCPListener: tcp}, nil
}

// close ends the socket and what was accepted for nobody. It may be called again.
func (s *socket) close() {
	_ = s.Close() // it is given up
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.kept {
		_ = conn.Close()
	}
	s.kept = nil
}

// turn returns the listener of the next server, which leaves the socket open
// unless it is the last. The one before must have been closed, and must have
// returned from Accept.
func (s *socket) turn(last bool) (net.Listener, error) {
	if err := s.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", s.Addr(), err)
	}
	return &turn{socket: s, last: last, over: make(chan struct{})}, nil
}

// turn is one server's time at a socket.
type turn struct {
	*socket
	last bool
	once sync.Once
	over chan struct{}
}

// Accept implements net.Listener.
func (t *turn) Accept() (net.Conn, error) {
	if conn := t.take(); conn != nil {
		return conn, nil
	}
	conn, err := t.socket.Accept()
	select {
	case <-t.over:
		if err == nil {
			t.keep(conn)
		}
		return nil, net.ErrClosed
	default:
		return conn, err
	}
}

// keep holds a connection for the server after this one.
func (t *turn) keep(conn net.Conn) {
	if t.last {
		_ = conn.Close() // there is none
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, conn)
}

// take returns a connection that came too late for the server before.
func (t *turn) take() net.Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.kept) == 0 {
		return nil
	}
	conn := t.kept[0]
	t.kept = t.kept[1:]
	return conn
}

// Close implements net.Listener: it ends Accept.
func (t *turn) Close() error {
	t.once.Do(func() { close(t.over) })
	if t.last {
		t.close()
		return nil
	}
	return t.SetDeadline(time.Unix(1, 0))
}
