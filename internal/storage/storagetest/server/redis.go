package server

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
)

type redisServer struct{}

func (redisServer) account() string { return "redis" }

// install has nothing to do: an empty directory is an empty Redis.
func (redisServer) install(context.Context, runner, string) error { return nil }

func (redisServer) command(s *Server) ([]string, error) {
	server, err := program("redis-server")
	if err != nil {
		return nil, err
	}
	credential, err := s.group.credential(s.account())
	if err != nil {
		return nil, err
	}
	fsync := "everysec"
	if s.durable {
		fsync = "always"
	}
	// The default user cannot log in, but has all rights: Redis 7.0 reads its
	// append-only file as that user, and leaves out transactions without them.
	config := filepath.Join(s.dir, "redis.conf")
	err = runner{credential: credential}.write(config, []byte(fmt.Sprintf(`bind 127.0.0.1
port %d
tls-port %d
tls-auth-clients no
tls-cert-file %q
tls-key-file %q
tls-ca-cert-file %q
dir %q
databases 4096
appendonly yes
appendfsync %s
save ""
user default off ~* &* +@all
user %s on #%x ~* &* +@all
`, s.port, s.tlsPort, filepath.Join(s.dir, certificateFile), filepath.Join(s.dir, keyFile), s.CAFile(), filepath.Join(s.dir, "data"), fsync, User, sha256.Sum256([]byte(Password)))))
	if err != nil {
		return nil, err
	}
	return []string{server, config}, nil
}

// ping speaks the protocol itself: the client library writes to standard error
// of a server that is not there yet.
func (redisServer) ping(ctx context.Context, s *Server) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(conn, "*3\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n$%d\r\n%s\r\nPING\r\n", len(User), User, len(Password), Password); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	for _, want := range []string{"+OK\r\n", "+PONG\r\n"} {
		got, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if got != want {
			return errors.New("it answered " + strconv.Quote(got))
		}
	}
	return nil
}

// create has nothing to do: the databases of Redis are there, by number.
func (redisServer) create(context.Context, *Server, string) error { return nil }
