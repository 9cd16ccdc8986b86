package sqldb

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"teekms/internal/storage"
)

// kind is what a caller does about a fault.
type kind int

const (
	// other is not repaired by trying again.
	other kind = iota
	// lost is a connection that cannot be made or has ended.
	lost
	// conflict is a transaction that had to give way to another.
	conflict
	// unique is a row that exists.
	unique
	// late is an answer that did not come in time.
	late
)

// fault is an error of the database in words of our own. What a driver says may
// hold the URL, the user or values of a row, and goes no further than this
// package.
type fault struct {
	text string
	// code is the database's own, safe to show; or empty.
	code string
	kind kind
	// of are the errors that this is one of.
	of []error
}

// Error returns text and code.
func (f *fault) Error() string {
	if f.code == "" {
		return f.text
	}
	return f.text + " (" + f.code + ")"
}

// Unwrap returns the sentinels.
func (f *fault) Unwrap() []error { return f.of }

// unavailable is a fault that may be gone later.
func unavailable(k kind, code, text string) *fault {
	return &fault{text: text, code: code, kind: k, of: []error{storage.ErrUnavailable}}
}

// fault returns err in our own words; nil for nil. ctx is that of the caller: it
// tells the caller's patience from ours.
func (d *DB) fault(ctx context.Context, err error) error {
	if f := d.asFault(ctx, err); f != nil {
		return f
	}
	return nil
}

func (d *DB) asFault(ctx context.Context, err error) *fault {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*fault](err); ok {
		return f
	}
	switch over := ctx.Err(); {
	case errors.Is(over, context.DeadlineExceeded):
		return &fault{text: "the database gave no answer in time", kind: late, of: []error{storage.ErrUnavailable, over}}
	case over != nil:
		return &fault{text: "the call was given up", kind: late, of: []error{storage.ErrUnavailable, over}}
	}
	return describe(d.dialect, d.timeout, err)
}

// describe finds the words.
func describe(l *dialect, timeout time.Duration, err error) *fault {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, os.ErrDeadlineExceeded) {
		return unavailable(late, "", fmt.Sprintf("the database gave no answer within %v", timeout))
	}
	if f := l.fault(err); f != nil {
		return f
	}
	if f := describeTLS(err); f != nil {
		return f
	}
	if f := describeNetwork(timeout, err); f != nil {
		return f
	}
	if strings.Contains(err.Error(), "sql: database is closed") {
		return &fault{text: "the database was closed"}
	}
	return &fault{text: "the database does not answer as " + l.name + " does"}
}

func describeTLS(err error) *fault {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return &fault{text: "the server does not answer with TLS"}
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return &fault{text: "the server's certificate is not trusted: it was not issued by a known authority"}
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return &fault{text: "the server's certificate is not trusted: it is for another host"}
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if e.Reason == x509.Expired {
			return &fault{text: "the server's certificate is not trusted: it has expired or is not yet valid"}
		}
		return &fault{text: "the server's certificate is not trusted"}
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &fault{text: "the server's certificate is not trusted"}
	}
	if alert, ok := errors.AsType[tls.AlertError](err); ok {
		return &fault{text: "the server ended the TLS handshake", code: "alert " + fmt.Sprint(uint8(alert))}
	}
	return nil
}

func describeNetwork(timeout time.Duration, err error) *fault {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		if dns.IsTimeout {
			return unavailable(late, "", fmt.Sprintf("the database server's name was not resolved within %v", timeout))
		}
		return unavailable(lost, "", "the database server's name is not known")
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return unavailable(lost, "", "the database server refused the connection: nothing listens there")
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return unavailable(lost, "", "the database server cannot be reached")
	case errors.Is(err, errNotLoopback):
		return &fault{text: "the name of the database server is not of this machine, as a connection without TLS must be"}
	}
	if network, ok := errors.AsType[net.Error](err); ok && network.Timeout() {
		return unavailable(late, "", fmt.Sprintf("the database gave no answer within %v", timeout))
	}
	_, op := errors.AsType[*net.OpError](err)
	switch {
	case op, errors.Is(err, driver.ErrBadConn), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, net.ErrClosed), errors.Is(err, sql.ErrConnDone), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return unavailable(lost, "", "the connection to the database was lost")
	default:
		return nil
	}
}
