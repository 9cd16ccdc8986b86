package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"teekms/cmd/internal/node"
)

// sockets are the listening sockets of this process by their addresses: each is
// opened once and kept, whatever server accepts from it.
type sockets struct {
	mu   sync.Mutex
	open map[string]*socket
}

// get returns the socket of an address, and whether it was not open before. Port 0
// is another one each time.
func (s *sockets) get(ctx context.Context, address string, port uint16) (l *socket, opened bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := fmt.Sprintf("%s %d", address, port)
	if kept := s.open[key]; kept != nil && port != 0 {
		return kept, false, nil
	}
	fresh, err := node.Listen(ctx, address, port)
	if err != nil {
		return nil, false, err
	}
	tcp, ok := fresh.(*net.TCPListener)
	if !ok {
		_ = fresh.Close() // it is of no use
		return nil, false, fmt.Errorf("listening on %s: a %T", fresh.Addr(), fresh)
	}
	if s.open == nil {
		s.open = map[string]*socket{}
	}
	if port == 0 {
		key = fresh.Addr().String()
	}
	l = &socket{TCPListener: tcp}
	s.open[key] = l
	return l, true, nil
}

// release closes a socket that no server accepts from any more.
func (s *sockets) release(done *socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, kept := range s.open {
		if kept == done {
			delete(s.open, key)
		}
	}
	done.close()
}

// close closes all of them.
func (s *sockets) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kept := range s.open {
		kept.close()
	}
	s.open = nil
}

// socket is a listening socket that one server after another accepts from. In
// between, connections wait in the kernel's queue: nobody is refused.
type socket struct {
	*net.TCPListener

	mu sync.Mutex
	// kept were accepted for a server that had gone by then; guarded by mu.
	kept []net.Conn
}

func (s *socket) close() {
	_ = s.Close() // it is given up
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.kept {
		_ = conn.Close()
	}
	s.kept = nil
}

// turn returns the listener of the next server. The one before must have been
// closed, and must have returned from Accept.
func (s *socket) turn() (net.Listener, error) {
	if err := s.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", s.Addr(), err)
	}
	return &turn{socket: s, over: make(chan struct{})}, nil
}

// turn is one server's time at a socket.
type turn struct {
	*socket
	once sync.Once
	over chan struct{}
}

// Accept implements net.Listener.
func (t *turn) Accept() (net.Conn, error) {
	if conn := t.take(); conn != nil {
		return conn, nil
	}
	conn, err := t.TCPListener.Accept()
	select {
	case <-t.over:
		if err == nil {
			t.mu.Lock()
			t.kept = append(t.kept, conn)
			t.mu.Unlock()
		}
		return nil, net.ErrClosed
	default:
		return conn, err
	}
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

// Close implements net.Listener. It ends Accept and leaves the socket open.
func (t *turn) Close() error {
	t.once.Do(func() { close(t.over) })
	return t.SetDeadline(time.Unix(1, 0))
}
