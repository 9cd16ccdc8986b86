// Package server starts real PostgreSQL, MariaDB and Redis servers on this
// machine's loopback for tests: from the programs that are installed, in
// directories of their own, as the packages' own users where the test runs as
// root, with and without TLS. Nothing of them outlives the test, even where the
// test is killed.
//
// A test package keeps one [Group]:
//
//	var servers server.Group
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(servers.Main(m)) }
//
// [Group.Shared] is for tests that use a server, [Group.Own] for those that kill,
// stop or pause it.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Kind is a server program.
type Kind string

// The kinds of servers.
const (
	PostgreSQL Kind = "postgresql"
	MariaDB    Kind = "mariadb"
	Redis      Kind = "redis"
)

// Marker is in the password of every server, so that a test finds where one
// shows.
const Marker = "MarkerOfASecret"

// User and Password are those of every server. The password has what URLs,
// shells and SQL give a meaning to.
const (
	User     = "kms"
	Password = Marker + ` p@ss:/?#[]%w0rd&=+'"\é`
)

// startTimeout is how long a server may take until it answers.
const startTimeout = 3 * time.Minute

// Server is a server of a [Group]. Its methods may be called from several
// goroutines; those that start and end it one at a time.
type Server struct {
	// Kind is the program.
	Kind Kind

	group *Group
	driver
	name          string
	dir           string
	port, tlsPort int
	durable       bool
	databases     atomic.Uint64

	mu      sync.Mutex // guards process
	process *process
}

// driver is what differs from one program to the next.
type driver interface {
	// install makes a data directory in dir, which is the program's.
	install(ctx context.Context, r runner, dir string) error
	// command returns program and arguments that serve s in the foreground.
	command(s *Server) ([]string, error)
	// ping tells whether s answers to its user.
	ping(ctx context.Context, s *Server) error
	// create makes a database.
	create(ctx context.Context, s *Server, database string) error
	// account is the user that Debian's package runs the program as.
	account() string
}

// URL reaches a database of the server without TLS. It holds the password.
func (s *Server) URL(database string) string {
	query := ""
	if s.Kind == PostgreSQL {
		query = "sslmode=disable"
	}
	return s.url(s.scheme(false), s.port, database, query)
}

// TLSURL reaches a database of the server with TLS, whose certificate is checked
// against [Server.CAFile].
func (s *Server) TLSURL(database string) string {
	query := ""
	switch s.Kind {
	case PostgreSQL:
		query = "sslmode=verify-full"
	case MariaDB:
		query = "ssl-mode=VERIFY_IDENTITY"
	case Redis:
	}
	return s.url(s.scheme(true), s.tlsPort, database, query)
}

func (s *Server) scheme(tls bool) string {
	switch {
	case s.Kind == PostgreSQL:
		return "postgresql"
	case s.Kind == MariaDB:
		return "mysql"
	case tls:
		return "rediss"
	default:
		return "redis"
	}
}

func (s *Server) url(scheme string, port int, database, query string) string {
	u := url.URL{
		Scheme: scheme, User: url.UserPassword(User, Password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Path: "/" + database, RawQuery: query,
	}
	return u.String()
}

// CAFile is the PEM file of the CA that issued the server's certificate, which
// is for localhost and 127.0.0.1.
func (s *Server) CAFile() string { return filepath.Join(s.group.dir, caFile) }

// OtherCAFile is the PEM file of a CA that did not.
func (s *Server) OtherCAFile() string { return filepath.Join(s.group.dir, otherCAFile) }

// NewDatabase makes an empty database and returns its name, for [Server.URL]. What
// it collates by is not the order of bytes, and not case-sensitive in MariaDB.
func (s *Server) NewDatabase(tb testing.TB) string {
	tb.Helper()
	n := s.databases.Add(1)
	name := fmt.Sprintf("kms_%d", n)
	if s.Kind == Redis {
		name = strconv.FormatUint(n, 10)
	}
	ctx, cancel := context.WithTimeout(tb.Context(), startTimeout)
	defer cancel()
	if err := s.create(ctx, s, name); err != nil {
		tb.Fatalf("making database %s on %s: %v", name, s.Kind, err)
	}
	return name
}

// Sibling returns the shared server of another kind.
func (s *Server) Sibling(tb testing.TB, kind Kind) *Server {
	tb.Helper()
	return s.group.Shared(tb, kind)
}

// Start starts the server, and returns when it answers. One that runs is left
// alone.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil && !s.process.exited() {
		return nil
	}
	args, err := s.command(s)
	if err != nil {
		return err
	}
	credential, err := s.group.credential(s.account())
	if err != nil {
		return err
	}
	p, err := startProcess(args, processConfig{
		Dir: s.dir, Log: filepath.Join(s.dir, "log"), PIDFile: filepath.Join(s.group.dir, s.name+".pid"), Credential: credential,
	})
	if err != nil {
		return fmt.Errorf("starting %s: %w", s.Kind, err)
	}
	s.process = p
	if err := s.answers(p); err != nil {
		p.kill()
		return fmt.Errorf("starting %s: %w\n%s", s.Kind, err, p.tail())
	}
	return nil
}

// answers waits for the server.
func (s *Server) answers(p *process) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		once, cancelOnce := context.WithTimeout(ctx, 10*time.Second)
		err := s.ping(once, s)
		cancelOnce()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return fmt.Errorf("no answer in %v: %w", startTimeout, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Kill ends the server and all its processes with SIGKILL, and returns when they
// are gone. One that does not run is left alone.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		s.process.kill()
		s.process = nil
	}
}

// Stop asks the server to end, and waits for it.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return nil
	}
	signal := syscall.SIGTERM
	if s.Kind == PostgreSQL {
		// SIGTERM waits for the clients to go.
		signal = syscall.SIGINT
	}
	if err := s.process.stop(signal, startTimeout); err != nil {
		return fmt.Errorf("stopping %s: %w", s.Kind, err)
	}
	s.process = nil
	return nil
}

// Pause makes the server hang: connections stay and get no answer.
func (s *Server) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		s.process.signalAll(syscall.SIGSTOP)
	}
}

// Resume ends a [Server.Pause].
func (s *Server) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		s.process.signalAll(syscall.SIGCONT)
	}
}

// Log returns the end of what the server wrote to its log.
func (s *Server) Log() string { return tail(filepath.Join(s.dir, "log")) }

// tail returns the last lines of a file.
func tail(path string) string {
	const most = 4096
	log, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(log[max(0, len(log)-most):])
}
