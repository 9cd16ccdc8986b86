package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

// Group is the servers of one test binary, in one directory. The zero Group is
// ready; [Group.Main] or [Group.Stop] ends it.
type Group struct {
	mu       sync.Mutex // guards what follows
	dir      string
	servers  []*Server
	shared   map[Kind]func() (*Server, error)
	template map[Kind]func() (string, error)
	ca       *authority
	watchdog *exec.Cmd
	lifeline io.Closer // the watchdog acts when it closes
}

// Options say how a server is run.
type Options struct {
	// Durable servers write to the disk before they answer; the others are
	// faster.
	Durable bool
}

// main runs the tests of a package with their servers.
type main struct {
	group *Group
	tests interface{ Run() int }
}

// Main returns the tests with an end to the servers after them, for TestMain.
func (g *Group) Main(m *testing.M) interface{ Run() int } { return main{group: g, tests: m} }

// Run runs the tests and ends the servers.
func (m main) Run() int {
	code := m.tests.Run()
	if err := m.group.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

// Shared returns the server of this kind that the tests of the binary share, for
// those that do nothing to it. It does not write durably.
func (g *Group) Shared(tb testing.TB, kind Kind) *Server {
	tb.Helper()
	g.mu.Lock()
	if g.shared == nil {
		g.shared = make(map[Kind]func() (*Server, error))
	}
	start, ok := g.shared[kind]
	if !ok {
		start = sync.OnceValues(func() (*Server, error) { return g.New(kind, Options{}) })
		g.shared[kind] = start
	}
	g.mu.Unlock()
	s, err := start()
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// Own starts a server for one test, which may kill it. It ends with the test.
func (g *Group) Own(tb testing.TB, kind Kind, o Options) *Server {
	tb.Helper()
	s, err := g.New(kind, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Kill)
	return s
}

// New starts a server that ends with the group.
func (g *Group) New(kind Kind, o Options) (*Server, error) {
	s, err := g.prepare(kind, fmt.Sprintf("%s-%016x", kind, rand.Uint64()), o) //nolint:gosec // a name, not a secret
	if err != nil {
		return nil, fmt.Errorf("preparing %s: %w", kind, err)
	}
	// Another program may take a port in between; then others are tried.
	for range 3 {
		if s.port, s.tlsPort, err = ports(kind); err != nil {
			return nil, err
		}
		if err = s.Start(); err == nil {
			return s, nil
		}
	}
	return nil, err
}

// Stop ends all servers and removes their directory.
func (g *Group) Stop() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.servers {
		s.Kill()
	}
	g.servers, g.shared, g.template = nil, nil, nil
	if g.watchdog == nil {
		return nil
	}
	err := errors.Join(g.lifeline.Close(), g.watchdog.Wait())
	g.watchdog, g.dir = nil, ""
	if err != nil {
		return fmt.Errorf("ending the watchdog of the servers: %w", err)
	}
	return nil
}

// prepare makes the directory of a server, with data in it.
func (g *Group) prepare(kind Kind, name string, o Options) (*Server, error) {
	if err := g.open(); err != nil {
		return nil, err
	}
	s := &Server{Kind: kind, group: g, name: name, dir: filepath.Join(g.dir, name), durable: o.Durable}
	var err error
	if s.driver, err = driverOf(kind); err != nil {
		return nil, err
	}
	credential, err := g.credential(s.account())
	if err != nil {
		return nil, err
	}
	r := runner{dir: s.dir, credential: credential}
	if err := r.mkdir(s.dir); err != nil {
		return nil, err
	}
	if err := g.ca.issue(r, s.dir); err != nil {
		return nil, err
	}
	template, err := g.templateOf(s, credential)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := r.run(ctx, nil, "cp", "-a", template, filepath.Join(s.dir, "data")); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.servers = append(g.servers, s)
	return s, nil
}

// templateOf returns a data directory as the program's installation makes it,
// once for all servers of a kind.
func (g *Group) templateOf(s *Server, credential *syscall.Credential) (string, error) {
	g.mu.Lock()
	if g.template == nil {
		g.template = make(map[Kind]func() (string, error))
	}
	install, ok := g.template[s.Kind]
	if !ok {
		install = sync.OnceValues(func() (string, error) {
			r := runner{dir: filepath.Join(g.dir, "template-"+string(s.Kind)), credential: credential}
			if err := r.mkdir(r.dir); err != nil {
				return "", err
			}
			data := filepath.Join(r.dir, "data")
			if err := r.mkdir(data); err != nil {
				return "", err
			}
			ctx, cancel := context.WithTimeout(context.Background(), 2*startTimeout)
			defer cancel()
			return data, s.install(ctx, r, data)
		})
		g.template[s.Kind] = install
	}
	g.mu.Unlock()
	return install()
}

// open makes the directory, the CA and the watchdog where they are missing.
func (g *Group) open() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.watchdog != nil {
		return nil
	}
	dir, err := os.MkdirTemp("", "kms-test-servers-")
	if err != nil {
		return err
	}
	// Other users pass through it to directories of their own.
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // see above
		return err
	}
	if g.ca, err = newAuthority(dir); err != nil {
		return err
	}
	cmd := exec.CommandContext(context.Background(), "/bin/sh", "-c", watchdog, "watchdog", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	lifeline, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the watchdog of the servers: %w", err)
	}
	g.dir, g.watchdog, g.lifeline = dir, cmd, lifeline
	return nil
}

// watchdog waits until the test has ended in whatever way, then kills what is
// left of the servers and removes their directory.
const watchdog = `
cat >/dev/null
for file in "$1"/*.pid; do
	read -r server <"$file" || continue
	kill -STOP "$server"
	for stat in /proc/[0-9]*/stat; do
		read -r pid name state parent rest <"$stat" || continue
		[ "$parent" != "$server" ] || kill -KILL "$pid"
	done
	kill -KILL "$server"
done 2>/dev/null
for try in 1 2 3 4 5; do
	rm -rf "$1" 2>/dev/null && exit 0
	sleep 0.2
done
rm -rf "$1"
`

// credential is what a server runs as: the account of its package where the test
// is root, because the servers refuse to be, else nil.
func (g *Group) credential(account string) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup(account)
	if err != nil {
		return nil, fmt.Errorf("there is no user %q: run 'make deps' (%w)", account, err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// ports finds free ports below those that the kernel gives to connections, so
// that a server finds its own free when it is started again.
func ports(kind Kind) (plain, tls int, err error) {
	if plain, err = port(); err != nil {
		return 0, 0, err
	}
	tls = plain
	for kind == Redis && tls == plain {
		if tls, err = port(); err != nil {
			return 0, 0, err
		}
	}
	return plain, tls, nil
}

func port() (int, error) {
	const low, high = 15000, 32000
	for range 100 {
		n := low + rand.IntN(high-low) //nolint:gosec // a port, not a secret
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(n)))
		if err == nil {
			return n, l.Close()
		}
	}
	return 0, fmt.Errorf("no free port between %d and %d", low, high)
}
