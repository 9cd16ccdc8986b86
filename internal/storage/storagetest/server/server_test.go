package server_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"go.uber.org/goleak"

	"teekms/internal/storage/storagetest/server"
)

var servers server.Group

// childVariable makes a run of the test binary a process that starts servers and
// waits to be killed.
const childVariable = "TEST_SERVERS_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		child()
	}
	goleak.VerifyTestMain(servers.Main(m))
}

// child starts a server of each kind, one of them hanging, and prints what it
// needs to be reached.
func child() {
	for _, kind := range kinds() {
		s, err := servers.New(kind, server.Options{})
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		if kind == server.PostgreSQL {
			s.Pause()
		}
		fmt.Println(strings.ReplaceAll(s.CAFile(), "/ca.pem", ""), address(s.URL("")))
	}
	fmt.Println("ready")
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
	if err := servers.Stop(); err != nil {
		fmt.Println("failed:", err)
	}
	os.Exit(0)
}

func kinds() []server.Kind { return []server.Kind{server.PostgreSQL, server.MariaDB, server.Redis} }

func address(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return err.Error()
	}
	return u.Host
}

// query asks the server something on a connection of its own, with TLS where
// there is a configuration for it.
func query(t *testing.T, s *server.Server, database string, config *tls.Config) error {
	t.Helper()
	return queryFor(t, time.Minute, s, database, config)
}

func queryFor(t *testing.T, patience time.Duration, s *server.Server, database string, config *tls.Config) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	url := s.URL(database)
	if config != nil {
		url = s.TLSURL(database)
	}
	switch s.Kind {
	case server.PostgreSQL:
		if config != nil {
			// The driver reads the CA from a file.
			url += "&sslrootcert=" + s.CAFile()
		}
		db, err := sql.Open("pgx", url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		var encrypted bool
		if err := db.QueryRowContext(ctx, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&encrypted); err != nil {
			return err
		}
		if encrypted != (config != nil) {
			t.Errorf("encrypted = %t", encrypted)
		}
		return nil
	case server.MariaDB:
		c := mysql.NewConfig()
		c.User, c.Passwd, c.Net, c.Addr, c.DBName, c.TLS = server.User, server.Password, "tcp", address(url), database, config
		c.Logger = &mysql.NopLogger{}
		connector, err := mysql.NewConnector(c)
		if err != nil {
			t.Fatal(err)
		}
		db := sql.OpenDB(connector)
		defer db.Close()
		_, err = db.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS t (i INT)")
		return err
	default:
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address(url))
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		if config != nil {
			conn = tls.Client(conn, config)
		}
		if _, err := conn.Write([]byte("PING\r\n")); err != nil {
			return err
		}
		answer, err := bufio.NewReader(conn).ReadString('\n')
		if err == nil && answer != "-NOAUTH Authentication required.\r\n" {
			t.Errorf("it answers strangers %q", answer)
		}
		return err
	}
}

func TestServerAnswersInPlainAndWithTLS(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			s := servers.Shared(t, kind)
			if again := servers.Shared(t, kind); again != s {
				t.Error("Shared started another server")
			}
			database := s.NewDatabase(t)
			if err := query(t, s, database, nil); err != nil {
				t.Errorf("in plain: %v", err)
			}
			pool := x509.NewCertPool()
			pem, err := os.ReadFile(s.CAFile())
			if err != nil || !pool.AppendCertsFromPEM(pem) {
				t.Fatal("no CA", err)
			}
			if err := query(t, s, database, &tls.Config{RootCAs: pool, ServerName: "localhost"}); err != nil {
				t.Errorf("with TLS: %v", err)
			}
			if kind == server.PostgreSQL {
				return // its driver was given the file
			}
			other := x509.NewCertPool()
			pem, err = os.ReadFile(s.OtherCAFile())
			if err != nil || !other.AppendCertsFromPEM(pem) {
				t.Fatal("no other CA", err)
			}
			err = query(t, s, database, &tls.Config{RootCAs: other, ServerName: "localhost"})
			if err == nil || !strings.Contains(err.Error(), "unknown authority") {
				t.Errorf("with TLS and another CA: %v, want unknown authority", err)
			}
		})
	}
}

func TestServerIsKilledStoppedAndPaused(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			s := servers.Own(t, kind, server.Options{Durable: true})
			database := s.NewDatabase(t)
			answers := func(when string) {
				t.Helper()
				if err := query(t, s, database, nil); err != nil {
					t.Fatalf("%s: %v\n%s", when, err, s.Log())
				}
			}
			answers("started")
			s.Kill()
			if err := query(t, s, database, nil); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatalf("killed: %v, want connection refused", err)
			}
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			answers("started after Kill")
			s.Pause()
			if err := queryFor(t, 3*time.Second, s, database, nil); err == nil {
				t.Fatal("paused: it answers")
			}
			s.Resume()
			answers("resumed")
			if err := s.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := query(t, s, database, nil); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatalf("stopped: %v, want connection refused", err)
			}
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			answers("started after Stop")
		})
	}
}

func TestNothingOutlivesTheTest(t *testing.T) {
	tests := []struct {
		name   string
		signal syscall.Signal
		user   uint32
	}{
		{name: "killed", signal: syscall.SIGKILL, user: uint32(os.Getuid())},
		{name: "ended by itself", signal: syscall.SIGTERM, user: uint32(os.Getuid())},
		// Where the test is root, it is also run as another user.
		{name: "killed, unprivileged", signal: syscall.SIGKILL, user: 65534},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			binary := reachable(t)
			cmd := exec.CommandContext(t.Context(), binary)
			cmd.Dir = "/"
			cmd.Env = append(os.Environ(), childVariable+"=1")
			if os.Getuid() == 0 {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: tt.user, Gid: tt.user}}
			}
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			dir, addresses := "", []string(nil)
			lines := bufio.NewScanner(out)
			for lines.Scan() && lines.Text() != "ready" {
				fields := strings.Fields(lines.Text())
				if len(fields) != 2 {
					t.Fatal(lines.Text())
				}
				dir, addresses = fields[0], append(addresses, fields[1])
			}
			if len(addresses) != len(kinds()) {
				t.Fatalf("%d servers started, want %d", len(addresses), len(kinds()))
			}
			for _, a := range addresses {
				if !open(a) {
					t.Errorf("nobody listens at %s", a)
				}
			}
			if err := cmd.Process.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			// How it ended is not the question.
			_ = cmd.Wait()
			gone(t, dir, addresses)
		})
	}
}

// reachable copies the test binary to where every user may run it.
func reachable(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "kms-test-binary-") //nolint:usetesting // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "server.test")
	if err := os.WriteFile(path, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(address string) bool {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// gone waits until the directory and the listeners are away.
func gone(t *testing.T, dir string, addresses []string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		var left []string
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			left = append(left, dir)
		}
		for _, a := range addresses {
			if open(a) {
				left = append(left, a)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %v", left)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
