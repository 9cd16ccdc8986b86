package main

import (
	"errors"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"teekms/internal/storage/storagetest/server"
)

// servers are the databases of the tests.
var servers server.Group

func TestMain(m *testing.M) { goleak.VerifyTestMain(servers.Main(m)) }

// accepted accepts once, in the background.
func accepted(l net.Listener) <-chan error {
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = conn.Close()
		}
		done <- err
	}()
	return done
}

// TestSocketOutlivesItsServers closes the listener of one server and connects
// before there is another.
func TestSocketOutlivesItsServers(t *testing.T) {
	s, err := newSocket(t.Context(), "127.0.0.1", 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	first, err := s.turn(false)
	if err != nil {
		t.Fatal(err)
	}
	waiting := accepted(first)
	time.Sleep(10 * time.Millisecond) // let it block
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept() of a closed listener = %v, want net.ErrClosed", err)
	}
	between, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatalf("connecting between two servers: %v", err)
	}
	defer between.Close()
	second, err := s.turn(true)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-accepted(second); err != nil {
		t.Errorf("Accept() of the second server = %v, want the connection that waited", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", s.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("the socket is open after its last server")
	}
}

// TestSocketKeepsWhatCameTooLate has a connection accepted by a server that was
// closed in that moment: the next one gets it.
func TestSocketKeepsWhatCameTooLate(t *testing.T) {
	s, err := newSocket(t.Context(), "127.0.0.1", 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	l, err := s.turn(false)
	if err != nil {
		t.Fatal(err)
	}
	late, ok := l.(*turn)
	if !ok {
		t.Fatalf("turn() is a %T", l)
	}
	close(late.over) // closed, but Accept had returned
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := <-accepted(late); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept() = %v, want net.ErrClosed", err)
	}
	next, err := s.turn(true)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-accepted(next); err != nil {
		t.Errorf("Accept() of the next server = %v, want the connection that was kept", err)
	}
}

func TestPortInUse(t *testing.T) {
	s, err := newSocket(t.Context(), "127.0.0.1", 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	port := s.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // a TCP listener's
	want := "Address already in use (os error 98): " + s.Addr().String()
	if _, err := newSocket(t.Context(), "127.0.0.1", uint16(port)); err == nil || err.Error() != want {
		t.Errorf("newSocket() = %v, want %s", err, want)
	}
}
