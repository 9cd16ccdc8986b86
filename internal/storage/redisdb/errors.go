package redisdb

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"teekms/internal/storage"
)

// Pauses before something is tried again on a new connection are doubled each
// time, from the first to the last of these.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 500 * time.Millisecond
	// shortPatience is for a server that nobody knows yet, and for Ping.
	shortPatience = 500 * time.Millisecond
)

// pauses waits before tries, for no longer in all than a patience.
type pauses struct{ next, left time.Duration }

func newPauses(patience time.Duration) *pauses { return &pauses{next: firstPause, left: patience} }

// again waits; false means that there is no time left.
func (p *pauses) again(ctx context.Context) bool {
	if p.next > p.left {
		return false
	}
	d := p.next
	p.left, p.next = p.left-d, min(2*d, lastPause)
	return pause(ctx, d)
}

// ask runs something that may be repeated, again where the connection broke, and
// explains its error. It never waits longer than the database's timeout.
func (db *DB) ask(ctx context.Context, doing string, f func(context.Context) error) error {
	return db.askFor(ctx, db.patience, doing, f)
}

func (db *DB) askFor(ctx context.Context, patience time.Duration, doing string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, db.timeout)
	defer cancel()
	tries := newPauses(patience)
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if !isTransient(err) || !tries.again(ctx) {
			return fmt.Errorf("%s the Redis database: %w", doing, describe(err))
		}
	}
}

// pause waits; false means that the context ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// replyCode returns the code of an error that the server answered, empty where
// err is none. The rest of an answer is the server's to choose and is dropped.
func replyCode(err error) string {
	reply, ok := errors.AsType[redis.Error](err)
	if !ok || errors.Is(err, redis.Nil) {
		return ""
	}
	code, _, _ := strings.Cut(reply.Error(), " ")
	known := []string{
		"WRONGPASS", "NOAUTH", "NOPERM", "LOADING", "OOM", "MISCONF", "READONLY", "BUSY", "WRONGTYPE",
		"MASTERDOWN", "MOVED", "CLUSTERDOWN", "NOREPLICAS", "TRYAGAIN",
	}
	if slices.Contains(known, code) {
		return code
	}
	return "ERR"
}

// isTransient says that the same may work on another connection, a moment later.
func isTransient(err error) bool {
	if code := replyCode(err); code != "" {
		return code == "LOADING" || code == "TRYAGAIN"
	}
	for _, final := range []error{storage.ErrIntegrity, errNotLocal, errTLSSilent, context.DeadlineExceeded, context.Canceled, redis.ErrClosed} {
		if errors.Is(err, final) {
			return false
		}
	}
	_, dns := errors.AsType[*net.DNSError](err)
	return !dns && certificateProblem(err) == "" && !isTimeout(err)
}

// describe replaces an error of the driver by a fixed text. Errors of ours are
// kept.
func describe(err error) error {
	if errors.Is(err, storage.ErrIntegrity) || errors.Is(err, storage.ErrUnavailable) {
		return err
	}
	if code := replyCode(err); code != "" {
		return describeReply(code, err)
	}
	if problem := certificateProblem(err); problem != "" {
		return errors.New("the certificate of the server is not trusted: " + problem)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%w: %w", storage.ErrUnavailable, context.Canceled)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", storage.ErrUnavailable, context.DeadlineExceeded)
	}
	return fmt.Errorf("%w: %s", storage.ErrUnavailable, connectionProblem(err))
}

// describeReply explains what the server answered.
func describeReply(code string, err error) error {
	switch code {
	case "WRONGPASS", "NOAUTH":
		return fmt.Errorf("the server refused the user name or password (%s)", code)
	case "NOPERM":
		return errors.New("the server's user lacks a permission (NOPERM): docs/storage.md#redis lists the commands")
	}
	switch text := err.Error(); {
	case strings.Contains(text, "DB index is out of range") || strings.Contains(text, "SELECT is not allowed"):
		return errors.New("the server has no database of this number")
	case strings.Contains(text, "without any password configured"):
		return errors.New("the server expects no password: it has none configured")
	}
	return fmt.Errorf("%w: the server answered %s", storage.ErrUnavailable, code)
}

// certificateProblem names what is wrong with the server's certificate, in fixed
// words; empty where nothing is.
func certificateProblem(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "it was not issued by a known authority"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "it is for another host"
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return "it has expired or is not yet valid"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "it is not valid"
	}
	return ""
}

// connectionProblem names what is wrong with a connection, in fixed words.
func connectionProblem(err error) string {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "the server does not answer with TLS"
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "the name of the server cannot be resolved"
	}
	switch {
	case errors.Is(err, errTLSSilent):
		return "no answer in time to the TLS handshake: the server may speak without TLS only"
	case errors.Is(err, errNotLocal):
		return "the name of the server is not of this machine, and plaintext may not leave it"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case isTimeout(err):
		return "no answer in time"
	case errors.Is(err, redis.ErrClosed):
		return "it is closed"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "the server closed the connection"
	}
	return "the connection failed"
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}
